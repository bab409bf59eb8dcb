# In a machine that boots the system from the disk /dev/vda: puts it on the empty disk /dev/vdb, in a partition that
# firmware starts by GRUB. $firmware is bios or uefi, $append has more words for the kernel.
export DEBIAN_FRONTEND=noninteractive
case $firmware in
    bios) packages=grub-pc boot='size=1MiB, type=21686148-6449-6E6F-744E-656564454649' ;;
    uefi) packages="grub-efi-amd64 dosfstools" boot='size=64MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B' ;;
esac
apt-get update --quiet
# Where GRUB goes is said below; on the instance it is the first disk.
echo "grub-pc grub-pc/install_devices_empty boolean true" | debconf-set-selections
apt-get install --yes --quiet --no-install-recommends $packages fdisk
apt-get clean
rm -rf /var/lib/apt/lists/*

# The partition of the root file system is the last, and of the type that systemd-repart makes grow.
sfdisk --quiet /dev/vdb <<END
label: gpt
$boot
type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
END
udevadm settle
mkfs.ext4 -q -L root /dev/vdb2
mkdir -p /run/target
mount /dev/vdb2 /run/target
/usr/sbin/arnia-agent generalise
cp -ax /. /run/target
uuid() { blkid -s UUID -o value "$1"; }
echo "UUID=$(uuid /dev/vdb2) / ext4 rw,relatime,x-systemd.growfs 0 1" > /run/target/etc/fstab
if [ "$firmware" = uefi ]; then
    mkfs.vfat -n ESP /dev/vdb1
    mkdir -p /run/target/boot/efi
    mount /dev/vdb1 /run/target/boot/efi
    echo "UUID=$(uuid /dev/vdb1) /boot/efi vfat umask=0077 0 2" >> /run/target/etc/fstab
fi
mkdir -p /run/target/etc/repart.d /run/target/etc/default/grub.d
printf '[Partition]\nType=root\n' > /run/target/etc/repart.d/50-root.conf
cat > /run/target/etc/default/grub.d/arnia.cfg <<END
GRUB_TIMEOUT=1
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0 $append"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
END
for folder in dev proc sys; do
    mount --rbind "/$folder" "/run/target/$folder"
done
case $firmware in
    bios)
        chroot /run/target grub-install --target=i386-pc /dev/vdb
        echo "grub-pc grub-pc/install_devices_empty boolean false" | chroot /run/target debconf-set-selections
        echo "grub-pc grub-pc/install_devices multiselect /dev/vda" | chroot /run/target debconf-set-selections
        ;;
    uefi) chroot /run/target grub-install --target=x86_64-efi --removable --no-nvram --no-uefi-secure-boot ;;
esac
chroot /run/target update-grub
for folder in dev proc sys; do
    umount --recursive --lazy "/run/target/$folder"
done
if [ "$firmware" = uefi ]; then
    umount /run/target/boot/efi
fi
umount /run/target
sync
