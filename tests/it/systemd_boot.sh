# Boots systemd as process 1 of namespaces of its own, on a temporary copy of this machine's root.
# $1: an empty folder  $2: the folder of the units  $3: the folder of the programs  $4: a model  $5: a port  $6: the number of pages
# $7: `filled` for a store with the model, `empty` for one that the server fills  $8: a line for the server's unit, or nothing
# $9: ggml-rpc-server
set -eu
scratch=$1 units=$2 programs=$3 model=$4 port=$5 pages=$6 store=$7 line=$8 worker=$9
mount --make-rprivate /
mount -t tmpfs none "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
mount -t overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" none "$scratch/root"
root=$scratch/root

# The machine's own services must not start.
rm -rf "$root"/etc/systemd/system/*.wants "$root"/lib/systemd/system/*.wants
cp "$programs/llama-server" "$programs/hugepages" "$worker" "$root/usr/bin/"
cp "$units"/*.service "$root/etc/systemd/system/"
mkdir -p "$root/usr/lib/sysusers.d" "$root/etc/llama-hugepages" "$root/srv/models"
cp "$units/llama-hugepages.sysusers.conf" "$root/usr/lib/sysusers.d/llama-hugepages.conf"
systemd-sysusers --root="$root" llama-hugepages.conf
cp "$model" "$root/srv/models/a.gguf"
chmod 644 "$root/srv/models/a.gguf"

echo "HUGEPAGES=$pages" > "$root/etc/llama-hugepages/pool.env"
printf '%s\n' MODELS=/srv/models/a.gguf SERVER_ARGS=--no-repack > "$root/etc/llama-hugepages/store.env"
printf 'LLAMA_ARG_%s\n' MODEL=/srv/models/a.gguf PORT="$port" CTX_SIZE=512 N_PARALLEL=1 THREADS=2 \
    > "$root/etc/llama-hugepages/a.env"
drop_in() { # unit, lines
    dir=$root/etc/systemd/system/$1.d
    shift
    mkdir "$dir"
    printf '%s\n' '[Service]' "$@" > "$dir/test.conf"
}
if [ "$store" = filled ]; then
    # The store and the server must use the same weights, so the server does not repack either.
    echo LLAMA_ARG_NO_REPACK=1 >> "$root/etc/llama-hugepages/a.env"
else
    drop_in llama-hugepages-store.service ExecStart= 'ExecStart=+/usr/bin/hugepages store mount --uid llama --gid llama'
fi
[ -z "$line" ] || drop_in llama-server@.service "$line"
printf '%s\n' '[Unit]' 'Wants=llama-hugepages-pool.service llama-hugepages-store.service llama-server@a.service' \
    > "$root/etc/systemd/system/test.target"

mount -t proc none "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,ro,bind "$root/proc/sys"
mount --rbind /dev "$root/dev"
mount --bind /sys "$root/sys"
mount -t cgroup2 none "$root/sys/fs/cgroup"
mount -t tmpfs none "$root/run"
mount -t tmpfs none "$root/tmp"
mkdir "$root/run/old"
cd "$root"
pivot_root . run/old
umount -l /run/old
export container=test
exec /lib/systemd/systemd --system --unit=test.target --log-target=console < /dev/null
