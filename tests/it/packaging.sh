# shellcheck shell=dash
# Installs, upgrades, removes and purges the Debian package in a root of its own, and compares files and pages before and after.
# Runs in namespaces of its own for mounts and processes, so that all mounts end with it.
# $1: the root  $2: the package  $3: the same package with a higher revision, in the same folder
set -eu
root=$1 package=$2 upgrade=$3
pages=3

say() { echo "== $*" >&2; }
fail() { echo "error: $*" >&2; exit 1; }
in_root() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
pool() { cat /proc/sys/vm/nr_hugepages; }
# The logs and the data of dpkg change with each package. The tools for users write backups and a lock.
files() {
    find "$root" -xdev -path "$root/var/cache" -prune -o -path "$root/var/lib/dpkg" -prune -o -path "$root/var/log" -prune \
        -o ! -path "$root/etc/*-" ! -name .pwd.lock -printf '%P %M %l\n' | sort
}
same() { # label, expected, found
    [ "$2" = "$3" ] || fail "$1: expected $2, found $3"
}

mount --make-rprivate /
mount -t proc none "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs none "$root/run"
mkdir "$root/run/packages"
cp "$package" "$upgrade" "$root/run/packages/"
package=/run/packages/${package##*/} upgrade=/run/packages/${upgrade##*/}
before=$(files) pool=$(pool)

say install
in_root dpkg --install "$package" >&2
in_root hugepages --version
in_root llama-server --version
in_root ggml-rpc-server --help
in_root hugepages exec --help >/dev/null
in_root dpkg --verify llama-hugepages
in_root id llama >/dev/null
for unit in llama-hugepages-pool llama-hugepages-store llama-server@a ggml-rpc-server@b; do
    complaints=$(in_root env SYSTEMD_LOG_LEVEL=notice systemd-analyze verify "$unit.service" 2>&1 | grep -e llama -e hugepages -e ggml || true)
    same "complaints about $unit" '' "$complaints"
done
same 'pages after the installation' "$pool" "$(pool)"

say upgrade
in_root hugepages pool reserve "$pages" >&2
in_root hugepages pool persist --yes >&2
in_root hugepages store mount >&2
echo 'LLAMA_ARG_MODEL=/a.gguf' >"$root/etc/llama-hugepages/a.env"
in_root systemctl --quiet enable llama-server@a ggml-rpc-server@b llama-hugepages-pool
reserved=$(pool)
[ "$reserved" -gt "$pool" ] || fail "the pool has $reserved pages, as before"
settings=$(ls "$root"/etc/*.d/60-llama-hugepages*)
in_root dpkg --install "$upgrade" >&2
same 'pages after the upgrade' "$reserved" "$(pool)"
mountpoint --quiet "$root/run/llama-hugepages/store/2M" || fail 'the upgrade unmounted the store'

say remove
in_root dpkg --remove llama-hugepages >&2
same 'pages after the removal' "$pool" "$(pool)"
same 'settings after the removal' "$settings" "$(ls "$root"/etc/*.d/60-llama-hugepages*)"
[ -e "$root/etc/llama-hugepages/a.env" ] || fail 'the removal lost a setting'
[ ! -e "$root/usr/bin/hugepages" ] || fail 'the removal left a program'
if mountpoint --quiet "$root/run/llama-hugepages/store/2M"; then fail 'the removal left a store'; fi

say purge
in_root dpkg --purge llama-hugepages >&2
# Directly, without a removal before.
in_root dpkg --install "$package" >&2
in_root hugepages pool reserve "$pages" >&2
in_root dpkg --purge llama-hugepages >&2
same 'pages after the purge' "$pool" "$(pool)"
[ ! -e "$root/run/llama-hugepages" ] || fail 'the purge left /run/llama-hugepages'
echo "$before" >"$root/run/before"
files >"$root/run/after"
diff "$root/run/before" "$root/run/after" || fail 'the purge left or removed files, see above'
