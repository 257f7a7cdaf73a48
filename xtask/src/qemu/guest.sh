#!/bin/busybox sh
# shellcheck shell=dash
# The guest's only process besides the servers. It starts one server for each case and reports the kernel's data of the
# server. The host compares the data with the expectations. The report uses the second serial line, because the kernel
# writes its own messages to the first.
/bin/busybox --install -s /bin
# The threads of a server wait in the kernel, because the host may have fewer CPUs than the guest.
export PATH=/bin LD_LIBRARY_PATH=/lib OMP_WAIT_POLICY=passive
mkdir -p /dev /proc /sys /tmp
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
ip link set lo up
# the kernel may then move pages to the node that reads them
echo 1 >/proc/sys/kernel/numa_balancing
# since Linux 6.7, huge pages may count as memory
limited=/cgroup/limited
mkdir /cgroup
mount -t cgroup2 -o memory_hugetlb_accounting cgroup /cgroup
echo +memory >/cgroup/cgroup.subtree_control
mkdir $limited
exec >/dev/ttyS1 2>&1 </dev/null

nodes=/sys/devices/system/node
server=http://127.0.0.1:8080

pools() {
    (cd $nodes && grep . node*/hugepages/hugepages-*/*_hugepages)
}

ready() {
    wget -q -O /dev/null $server/health 2>/dev/null
}

answer() {
    wget -q -O - --post-data \
        "{\"prompt\": \"$prompt\", \"n_predict\": $tokens, \"temperature\": 0, \"seed\": 1, \"return_tokens\": true}" \
        $server/completion
}

# ARGUMENTS…: becomes a server in the cgroup, on the CPUs of the case
server() {
    echo 0 >$limited/cgroup.procs
    LLAMA_READS=/tmp/reads exec timeout -s KILL 600 taskset -c "$cpus" llama-server -c 4096 -np 1 --no-warmup "$@" </dev/null
}

plan() {
    (server "$@" --hugepage-plan 2>/dev/null)
}

# The bytes of a plan: its pages, and the memory of the process.
bytes_of_plan() {
    sed 's/[,{]/\n/g' | awk -F: '/"page_size"/ { size = $2 } /"pages"/ { sum += size * $2 } /"process"/ { sum += $2 } END { printf "%.0f", sum }'
}

# NAME CPUS PAGES ROOM TOKENS PROMPT ARGUMENTS…: runs a server on these CPUs, with this number of 2 MiB pages in the pool of node 1.
# ROOM: MiB that the cgroup's limit is above the plan, or `-` for no limit.
run() {
    name=$1 cpus=$2 pages=$3 room=$4 tokens=$5 prompt=$6
    shift 6
    rm -f /tmp/*
    # A subshell writes to the pool: a signal stops the kernel before the pool is full, and init gets one for each orphan that
    # ends.
    (echo "$pages" >$nodes/node1/hugepages/hugepages-2048kB/nr_hugepages)
    echo "@@ case $name"
    echo '@@ before'
    pools
    is_by_rows=
    case "$*" in
    *'--numa distribute --hugepages'*) is_by_rows=1 ;;
    esac
    echo max >$limited/memory.max
    if [ "$room" != - ]; then
        limit=$(($(plan "$@" | bytes_of_plan) + room * 1048576))
        # the plan keeps 32 MiB for the server, so this is one page less than it asks for
        echo $((limit - (room - 30) * 1048576)) >$limited/memory.max
        echo '@@ plan_of_a_page_less'
        plan "$@"
        echo $limit >$limited/memory.max
    fi
    if [ "$is_by_rows" ] || [ "$room" != - ]; then
        echo '@@ plan'
        plan "$@"
    fi
    # The file marks the end of the server. `kill -0` would still find the process until its parent has waited for it.
    {
        (server "$@") >/tmp/log 2>&1
        echo $? >/tmp/exit
    } &
    until ready || [ -e /tmp/exit ]; do usleep 100000; done
    if [ ! -e /tmp/exit ]; then
        pid=$(pidof llama-server)
        echo '@@ numa_maps'
        cat "/proc/$pid/numa_maps"
        echo '@@ smaps'
        grep -E '^[0-9a-f]+-|^KernelPageSize|^VmFlags' "/proc/$pid/smaps"
        echo '@@ memory'
        echo "current $(cat $limited/memory.current)"
        echo '@@ answer'
        answer
        echo
        # The kernel looks at the reads of a page for a while before it moves the page.
        end=$(($(date +%s) + ${seconds_of_load:-0}))
        while [ "$is_by_rows" ] && [ "$(date +%s)" -lt "$end" ]; do
            answer >/dev/null
        done
        echo '@@ reads'
        cat /tmp/reads
        echo '@@ numa_maps_after'
        cat "/proc/$pid/numa_maps"
        # ggml pins a thread when it computes
        echo '@@ threads'
        for task in "/proc/$pid"/task/*; do
            echo "${task##*/} $(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' "$task/status")"
        done
        kill -TERM "$pid"
    fi
    wait
    echo '@@ memory'
    echo "limit $(cat $limited/memory.max)"
    cat $limited/memory.events
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
# The serial line may still send. Poweroff would lose the rest of the report.
sleep 1
poweroff -f
