"""``tproxy bench``: what encryption costs, and what others' costs beside it, in one interleaved run on this machine."""
