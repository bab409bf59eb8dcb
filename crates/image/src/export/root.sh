# Looks for a root file system on the disks $1, $2 ... and their partitions, and writes it to standard output as an archive.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
place=/run/arnia-root
mkdir -p "$place"
udevadm settle 2> /dev/null || true
for disk in "$@"; do
    for device in "$disk" "$disk"[0-9]*; do
        [ -b "$device" ] || continue
        [ "$(blkid -p -o value -s USAGE "$device")" = filesystem ] || continue
        # The overlay takes what the journal still has to do.
        mount -o ro "$device" "$place" 2> /dev/null || continue
        if [ -d "$place/etc" ] && { [ -d "$place/usr" ] || [ -d "$place/bin" ]; }; then
            exec tar --create --file - --directory "$place" --one-file-system --numeric-owner --format posix --sort name \
                --xattrs --xattrs-include '*' --acls --exclude ./lost+found .
        fi
        umount "$place"
    done
done
echo "none of the image's $# disks has a root file system that Linux knows by itself; encrypted ones and volume groups are not searched" >&2
exit 1
