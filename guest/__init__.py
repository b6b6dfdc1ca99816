"""A machine of another kernel, for what this one lacks: Debian under qemu, from apt, debootstrap and wheels.

Nothing of it is in the product, and ``make test`` does not need it. All that is made is kept in ``build/guest``.

$ make guest
$ .venv/bin/python -m guest --kernel 6.12 -- uname -a
"""

SEEN = "guest: seen: "  # how the line begins that a guest's command leaves for the end
