#!/usr/bin/env bash
# The bundle, moved elsewhere: what it needs is in it, in glibc and the compiler's runtime, or CUDA's; and it trains.
#
#     tests/gpu/bundle_test.sh build/bundle/trainyard.tar.gz
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
size=$(stat -c %s "$1")
[ "$size" -lt $((40 << 20)) ] || { echo "the bundle has $size bytes, more than 40 MiB" && exit 1; }
tar -C "$folder" -xzf "$1"
mkdir "$folder/elsewhere"
mv "$folder/trainyard" "$folder/elsewhere/ty"
ty="$folder/elsewhere/ty"
bad=0
for file in "$ty"/bin/* "$ty"/lib/*.so* "$ty"/lib/trainyard/*.so; do
  while read -r name _ path _; do
    case "$name" in
      linux-vdso.so* | */ld-linux* | libc.so* | libm.so* | libdl.so* | librt.so* | libpthread.so* | libstdc++.so* | libgcc_s.so*) continue ;;
      libcudart* | libcublas* | libcudnn* | libnccl* | libnvrtc*) continue ;;
    esac
    case "$path" in
      "$ty"/*) ;;
      *) echo "${file#"$ty"/} takes $name from ${path:-nowhere}" && bad=1 ;;
    esac
  done < <(env -i ldd "$file")
done
[ "$bad" = 0 ] || exit 1
# `env -i`: nothing of this shell helps it.
cd "$folder"
env -i "$ty/bin/trainyard" doctor --json >/dev/null
env -i "$ty/bin/trainyard" sim run "$ty/share/trainyard/scenarios/gpu/train-llama-1b.json" --no-store -q --json >/dev/null
env -i "$ty/bin/trainyard" exec run "$ty/share/trainyard/scenarios/tiny/train-llama.json" --device cpu --unvalidated --no-store \
  --data "$ty/src" --steps 2 -q --json >/dev/null
# In a root that has nothing but glibc and the compiler's runtime.
mkdir -p "$folder/root"/{lib64,lib,tmp,proc,dev}
if [ "$(id -u)" = 0 ] && mount --bind /proc "$folder/root/proc" 2>/dev/null; then
  trap 'umount "$folder/root/proc"; rm -rf "$folder"' EXIT
  for library in libc.so.6 libm.so.6 libdl.so.2 librt.so.1 libpthread.so.0 libstdc++.so.6 libgcc_s.so.1; do
    path=$(ldconfig -p | awk -v name="$library" '$1 == name && /x86-64/ { print $NF; exit }')
    cp -L "$path" "$folder/root/lib64/"
  done
  cp -L /lib64/ld-linux-x86-64.so.2 "$folder/root/lib64/"
  cp -r "$ty" "$folder/root/ty"
  env -i LD_LIBRARY_PATH=/lib64 PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$folder/root" /ty/bin/trainyard sim run \
    /ty/share/trainyard/scenarios/01-grok1-100k-week.json --no-store -q --json >/dev/null
  status=0
  env -i LD_LIBRARY_PATH=/lib64 PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$folder/root" /ty/bin/trainyard exec run /ty/share/trainyard/scenarios/gpu/train-llama-1b.json \
    --data /ty/src --device cuda --unvalidated --no-store 2>"$folder/said" || status=$?
  [ "$status" = 4 ] || { echo "without CUDA, --device cuda exits with $status, not 4" && exit 1; }
  cat "$folder/said"
fi
echo "the bundle of $size bytes runs from elsewhere"
