# In the new system, before its packages are installed: the initrd gets the drivers that our machines need
# and no others. It is unpacked at every boot.
mkdir -p /etc/initramfs-tools/conf.d /etc/initramfs-tools/hooks
cat > /etc/initramfs-tools/conf.d/arnia <<END
MODULES=list
COMPRESS=zstd
RESUME=none
END
cat > /etc/initramfs-tools/hooks/arnia <<'END'
#!/bin/sh
[ "${1:-}" != prereqs ] || exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk virtio_scsi sd_mod ahci ext4
END
chmod 755 /etc/initramfs-tools/hooks/arnia
