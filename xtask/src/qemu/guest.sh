#!/bin/busybox sh
# shellcheck shell=dash
# The guest's only process besides the servers: starts one server a case and reports what the kernel says of it. What
# that has to be is for the host to judge. The report goes to the second serial line, so that the kernel's own
# messages, on the first, never land in it.
/bin/busybox --install -s /bin
export PATH=/bin LD_LIBRARY_PATH=/lib
mkdir -p /dev /proc /sys /tmp
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
ip link set lo up
exec >/dev/ttyS1 2>&1 </dev/null

nodes=/sys/devices/system/node
server=http://127.0.0.1:8080

pools() {
    (cd $nodes && grep . node*/hugepages/hugepages-*/*_hugepages)
}

ready() {
    wget -q -O /dev/null $server/health 2>/dev/null
}

# NAME CPUS PAGES ARGUMENTS…: a server on these CPUs, with this many pages of 2 MiB in the pool of node 1.
run() {
    name=$1 cpus=$2 pages=$3
    shift 3
    rm -f /tmp/*
    # In a process of its own: a signal ends the growing of a pool half-way, and init gets one for each orphan that ends.
    (echo "$pages" >$nodes/node1/hugepages/hugepages-2048kB/nr_hugepages)
    echo "@@ case $name"
    echo '@@ before'
    pools
    # `kill -0` would take a process that nobody has waited for as alive; the file is there when it has ended.
    {
        timeout -s KILL 60 taskset -c "$cpus" llama-server -m /model.gguf -c 4096 -np 1 --no-warmup "$@" \
            >/tmp/log 2>&1 </dev/null
        echo $? >/tmp/exit
    } &
    until ready || [ -e /tmp/exit ]; do usleep 100000; done
    if [ ! -e /tmp/exit ]; then
        pid=$(pidof llama-server)
        echo '@@ numa_maps'
        cat "/proc/$pid/numa_maps"
        echo '@@ smaps'
        grep -E '^[0-9a-f]+-|^KernelPageSize|^VmFlags' "/proc/$pid/smaps"
        echo '@@ answer'
        wget -q -O - --post-data \
            '{"prompt": "Once upon a time", "n_predict": 8, "temperature": 0, "seed": 1, "return_tokens": true}' \
            $server/completion
        echo
        kill -TERM "$pid"
    fi
    wait
    echo '@@ exit'
    cat /tmp/exit
    echo '@@ log'
    cat /tmp/log
    echo '@@ after'
    pools
    echo '@@ end'
}

# shellcheck source=/dev/null
. /cases
echo '@@ done'
# The line may still be busy: a machine that is switched off loses what it has not sent.
sleep 1
poweroff -f
