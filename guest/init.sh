# The guest's first process: what tests expect of a Linux, then the command, then its exit code for the host.
export PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 PYTHONPATH=/src
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
hostname guest
cd /src
echo "guest: $(uname -r), $(python3 --version)"
sh /src/command
code=$?
echo # whatever line the command has left open
echo "guest: exit code $code"
sync
echo o > /proc/sysrq-trigger
sleep 60
