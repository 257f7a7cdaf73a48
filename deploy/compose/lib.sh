# shellcheck shell=bash
# The settings, the pool and the containers, for `check` and `switch`.

# shellcheck disable=SC2034 # the scripts use it
readonly SERVERS=3
readonly PROJECT=llama-hugepages

if [[ ! -f .env ]]; then
    echo 'error: no file .env' >&2
    echo 'hint: cp .env.example .env' >&2
    exit 1
fi

# As for Docker Compose, the environment overrides the file, and the last line wins. Values are read without quotes.
declare -A settings
while IFS='=' read -r name value || [[ -n $name ]]; do
    [[ ! $name =~ ^[A-Z][A-Z0-9_]*$ ]] || settings[$name]=$value
done <.env
for name in "${!settings[@]}"; do
    [[ -v $name ]] || declare "$name=${settings[$name]}"
done

: "${IMAGE:=llama-hugepages}" "${MODELS:=}" "${MODEL:=}" "${CTX_SIZE:=8192}" "${CACHE_RAM:=1024}" "${HUGEPAGE_SIZE:=2M}"
: "${STORE:=/run/llama-hugepages/store/2M}" "${STORE_USER:=10001}" "${STORE_GROUP:=10001}"

case $HUGEPAGE_SIZE in
    *K) PAGE=$((${HUGEPAGE_SIZE%K} << 10)) ;;
    *M) PAGE=$((${HUGEPAGE_SIZE%M} << 20)) ;;
    *G) PAGE=$((${HUGEPAGE_SIZE%G} << 30)) ;;
    *)
        echo "error: HUGEPAGE_SIZE=$HUGEPAGE_SIZE in .env is no size such as 2M or 1G" >&2
        exit 1
        ;;
esac

quoted() { printf '%q' "$1"; }

# shellcheck disable=SC2034 # `switch` uses COMPOSE
# Sets COMPOSE, the command, and ENGINE, the program that runs containers.
find_compose() {
    if docker compose version >/dev/null 2>&1; then
        COMPOSE=(docker compose) ENGINE=docker
    elif command -v podman-compose >/dev/null && command -v podman >/dev/null; then
        COMPOSE=(podman-compose) ENGINE=podman
    else
        return 1
    fi
}

# free pages that no process has reserved, and the surplus pages that the kernel may add
usable_pages() {
    local pool=/sys/kernel/mm/hugepages/hugepages-$((PAGE >> 10))kB free reserved surplus overcommit
    [[ -d $pool ]] || { echo 0 && return; }
    free=$(<"$pool/free_hugepages") reserved=$(<"$pool/resv_hugepages")
    surplus=$(<"$pool/surplus_hugepages") overcommit=$(<"$pool/nr_overcommit_hugepages")
    echo $((free - reserved + (overcommit > surplus ? overcommit - surplus : 0)))
}

# pages of the model's images in the store
store_pages() {
    [[ $(stat --file-system --format %T "$STORE" 2>/dev/null) == hugetlbfs ]] || { echo 0 && return; }
    local stem=${MODEL##*/}
    stem=${stem%.gguf}
    stem=${stem%-00001-of-*}
    # as the engine names images
    stem=${stem//[^a-zA-Z0-9._-]/_}
    find "$STORE" -type f -name "$stem*.resident" -printf '%b\n' 2>/dev/null |
        awk -v page="$PAGE" '{ sum += $1*512/page } END { printf "%.0f", sum }'
}

# Pages of the store and of the running containers; fails if this user may not see them.
held_pages() {
    local kib=0 id pid own processes
    if find_compose; then
        for id in $("$ENGINE" ps --quiet --filter "label=com.docker.compose.project=$PROJECT"); do
            processes=$("$ENGINE" top "$id" "$(top_format)" 2>/dev/null | awk 'NR > 1 { print $NF }') || continue
            for pid in $processes; do
                [[ -e /proc/$pid ]] || continue
                [[ -r /proc/$pid/smaps ]] || return 1
                # shared pages of the store are counted with the store
                own=$(awk '/^[0-9a-f]+-[0-9a-f]+ / { own = $0 !~ /\.resident/ } own && /_Hugetlb:/ { kib += $2 } END { printf "%.0f", kib }' \
                    "/proc/$pid/smaps" 2>/dev/null) || return 1
                kib=$((kib + own))
            done
        done
    fi
    echo $(($(store_pages) + kib*1024/PAGE))
}

# the option that makes `top` print the host's process id as the last column
top_format() {
    if [[ $ENGINE == podman ]]; then echo hpid; else echo -opid; fi
}
