# In the new system, after its packages are installed: what every Debian image of ours has. Instances are given their
# identity by $1: agent or cloud-init.
chmod 755 /usr/sbin/arnia-agent
echo localhost > /etc/hostname
# Grows with a larger disk.
echo "/dev/vda / ext4 rw,relatime,x-systemd.growfs 0 1" > /etc/fstab

cat > /etc/systemd/network/80-wired.network <<END
[Match]
Name=en* eth*

[Network]
DHCP=yes
IPv6AcceptRA=yes

[DHCPv4]
# Clones must not be taken for each other before they know who they are.
ClientIdentifier=mac
# Machines of one network find each other by their bare names, too.
UseDomains=yes
END
systemctl enable systemd-networkd.service arnia-agent.service
[ "$1" != agent ] || systemctl enable arnia-firstboot.service
! [ -e /usr/sbin/sshd ] || ! [ -d /etc/ssh/sshd_config.d ] || cat > /etc/ssh/sshd_config.d/arnia.conf <<END
# The kinds of host keys that instances make for themselves.
HostKey /etc/ssh/ssh_host_ed25519_key
HostKey /etc/ssh/ssh_host_ecdsa_key
PermitRootLogin prohibit-password
END
# Nobody knows a password: the agent opens shells, keys open SSH.
passwd --lock root > /dev/null

# Work that a fresh instance should not begin its life with.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer; do
    systemctl disable "$unit" > /dev/null 2>&1 || true
done
# Room.
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /usr/share/doc/*/changelog* /var/log/*.log
# Who it is, every instance finds out for itself.
/usr/sbin/arnia-agent generalise
