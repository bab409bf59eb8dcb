//! Options with parts: `--disk`, `--net`, `--vsock`, `--serial`.

use super::Net;
use api::ByteSize;
use api::worker::config::{
    CdromBus, CdromConfig, CharDevice, DiskBus, DiskConfig, FORMAT_AUTO, LineSocketConfig, NetConfig,
    RateLimits, SwitchNetConfig, TraceConfig, TraceEvents, UserNetConfig, VsockConfig,
};
use std::path::PathBuf;

/// Splits at commas; two commas stand for one that belongs to the text.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = parts.last_mut().expect("there is always a part");
        match c {
            ',' if chars.peek() == Some(&',') => {
                chars.next();
                last.push(',');
            }
            ',' => parts.push(String::new()),
            c => last.push(c),
        }
    }
    parts
}

/// Takes a value that may be given once.
fn once<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("`{name}` is given twice")),
    }
}

fn not_empty(name: &str, value: &str) -> Result<String, String> {
    if value.is_empty() { Err(format!("`{name}` has no value")) } else { Ok(value.to_owned()) }
}

pub(super) fn disk(text: &str) -> Result<DiskConfig, String> {
    const FORM: &str = "FILE[,format=FORMAT][,bus=virtio|ahci|scsi][,ro][,snapshot=NAME][,allow=PATH]...[,serial=TEXT]\
                        [,limit-bytes=SIZE][,limit-ops=N][,burst-bytes=SIZE][,burst-ops=N]";
    let (mut path, mut format, mut read_only, mut snapshot, mut serial) = (None, None, false, None, None);
    let (mut allow, mut bus, mut limits) = (Vec::new(), None, RateLimits::default());
    for (index, part) in parts(text).iter().enumerate() {
        match part.split_once('=') {
            Some(("path", value)) => once(&mut path, "path", not_empty("path", value)?)?,
            Some(("serial", value)) => once(&mut serial, "serial", value.to_owned())?,
            Some(("bus", value)) => once(&mut bus, "bus", disk_bus(value)?)?,
            Some(("format", value)) => once(&mut format, "format", not_empty("format", value)?)?,
            Some(("snapshot", value)) => once(&mut snapshot, "snapshot", not_empty("snapshot", value)?)?,
            Some(("allow", value)) => allow.push(not_empty("allow", value)?.into()),
            Some((name, value)) if index > 0 && limit(&mut limits, name, value)? => {}
            None if part == "ro" && index > 0 => read_only = true,
            // The plain form: a file name first. One that looks like an option is written path=….
            _ if index == 0 => path = Some(not_empty("path", part)?),
            _ => return Err(format!("{part:?} is not known: write {FORM}")),
        }
    }
    let path = path.ok_or_else(|| format!("the file is missing: write {FORM}"))?;
    let format = format.unwrap_or_else(|| FORMAT_AUTO.into());
    Ok(DiskConfig {
        path: path.into(),
        format,
        read_only,
        allow,
        snapshot,
        serial,
        bus: bus.unwrap_or_default(),
        limits,
    })
}

fn disk_bus(name: &str) -> Result<DiskBus, String> {
    match name {
        "virtio" => Ok(DiskBus::Virtio),
        "ahci" | "sata" => Ok(DiskBus::Ahci),
        "scsi" => Ok(DiskBus::Scsi),
        _ => Err(format!("{name:?} is no bus for disks: write virtio, ahci or scsi")),
    }
}

pub(super) fn cdrom(text: &str) -> Result<CdromConfig, String> {
    let mut drive = CdromConfig { path: None, media: None, bus: CdromBus::default() };
    let mut bus = None;
    for (index, part) in parts(text).iter().enumerate() {
        match part.split_once('=') {
            Some(("path", value)) => once(&mut drive.path, "path", not_empty("path", value)?.into())?,
            Some(("media", value)) => once(&mut drive.media, "media", not_empty("media", value)?.into())?,
            Some(("bus", "ahci" | "sata")) => once(&mut bus, "bus", CdromBus::Ahci)?,
            Some(("bus", "scsi")) => once(&mut bus, "bus", CdromBus::Scsi)?,
            None if part == "empty" && index == 0 => {}
            _ if index == 0 => drive.path = Some(not_empty("path", part)?.into()),
            _ => {
                return Err(format!(
                    "{part:?} is not known: write FILE[,media=DIR][,bus=ahci|scsi] or empty[,media=DIR][,bus=ahci|scsi]"
                ));
            }
        }
    }
    drive.bus = bus.unwrap_or_default();
    Ok(drive)
}

/// Takes a part that is a limit; whether it is one.
fn limit(limits: &mut RateLimits, name: &str, value: &str) -> Result<bool, String> {
    let size = || value.parse::<ByteSize>().map_err(|e| format!("{name}: {e}"));
    let number = || value.parse::<u64>().map_err(|_| format!("{name}: {value:?} is not a number"));
    match name {
        "limit-bytes" => once(&mut limits.bytes, name, size()?)?,
        "burst-bytes" => once(&mut limits.burst_bytes, name, size()?)?,
        "limit-ops" => once(&mut limits.operations, name, number()?)?,
        "burst-ops" => once(&mut limits.burst_operations, name, number()?)?,
        _ => return Ok(false),
    }
    Ok(true)
}

pub(super) fn net(text: &str) -> Result<Net, String> {
    const FORM: &str = "user[,forward=[ADDRESS:]PORT:[GUEST:]PORT[/udp]]...[,mac=MAC][,restrict]\
                        [,subnet=NETWORK][,hostname=NAME][,limit-bytes=SIZE][,limit-ops=N][,burst-bytes=SIZE]\
                        [,burst-ops=N], or switch=SOCKET,key=KEY[,mac=MAC][,mtu=BYTES][,limit-…]";
    let parts = parts(text);
    match (parts[0].as_str(), parts.len()) {
        ("none", 1) => return Ok(Net(None)),
        ("user", _) => {}
        (first, _) if first.starts_with("switch=") => return switch(&parts, FORM),
        (other, _) => return Err(format!("{other:?} is not a network: write none or {FORM}")),
    }
    let mut user = UserNetConfig::default();
    for part in &parts[1..] {
        match part.split_once('=') {
            Some(("forward", rule)) => {
                rule.parse::<net::Forward>().map_err(|e| e.to_string())?;
                user.forward.push(rule.to_owned());
            }
            Some(("mac", value)) => once(&mut user.mac, "mac", value.to_owned())?,
            Some(("subnet", value)) => once(&mut user.subnet, "subnet", value.to_owned())?,
            Some(("hostname", value)) => once(&mut user.hostname, "hostname", value.to_owned())?,
            Some((name, value)) if limit(&mut user.limits, name, value)? => {}
            None if part == "restrict" => user.restrict = true,
            _ => return Err(format!("{part:?} is not known: write {FORM}")),
        }
    }
    Ok(Net(Some(NetConfig::User(user))))
}

/// A card in a network of several machines.
fn switch(parts: &[String], form: &str) -> Result<Net, String> {
    let (mut socket, mut key, mut mac, mut mtu) = (None, None, None, None);
    let mut limits = RateLimits::default();
    for part in parts {
        match part.split_once('=') {
            Some(("switch", value)) => once(&mut socket, "switch", not_empty("switch", value)?.into())?,
            Some(("key", value)) => once(&mut key, "key", value.to_owned())?,
            Some(("mac", value)) => once(&mut mac, "mac", value.to_owned())?,
            Some(("mtu", value)) => {
                let bytes = value.parse().map_err(|_| format!("mtu={value}: write a number of bytes"))?;
                once(&mut mtu, "mtu", bytes)?;
            }
            Some((name, value)) if limit(&mut limits, name, value)? => {}
            _ => return Err(format!("{part:?} is not known: write {form}")),
        }
    }
    let (Some(socket), Some(key)) = (socket, key) else {
        return Err(format!("a card at a switch needs the switch's key: write {form}"));
    };
    let mtu = mtu.unwrap_or(api::v1::network::MTU_DEFAULT);
    Ok(Net(Some(NetConfig::Switch(SwitchNetConfig { mac, socket, key, mtu, limits }))))
}

pub(super) fn vsock(text: &str) -> Result<VsockConfig, String> {
    let (mut cid, mut socket) = (None, None);
    for part in parts(text) {
        match part.split_once('=') {
            Some(("cid", value)) => {
                let number =
                    value.parse().map_err(|_| format!("{value:?} is not a context ID: write a number"))?;
                once(&mut cid, "cid", number)?;
            }
            Some(("socket", value)) => once(&mut socket, "socket", not_empty("socket", value)?)?,
            _ => return Err(format!("{part:?} is not known: write cid=N,socket=PATH")),
        }
    }
    let cid = cid.ok_or("`cid` is missing: write cid=N,socket=PATH")?;
    let socket = socket.ok_or("`socket` is missing: write cid=N,socket=PATH")?;
    Ok(VsockConfig { cid, socket: socket.into() })
}

pub(super) fn char_device(text: &str) -> Result<CharDevice, String> {
    if text.starts_with("socket=") {
        return line_socket(text).map(CharDevice::Socket);
    }
    match text.split_once('=') {
        None if text == "stdio" => Ok(CharDevice::Stdio),
        None if text == "none" => Ok(CharDevice::None),
        Some(("file", path)) => Ok(CharDevice::File(PathBuf::from(not_empty("file", path)?))),
        _ => Err(format!("{text:?} is not known: write stdio, file=PATH, socket=PATH[,log=FILE] or none")),
    }
}

pub(super) fn trace(text: &str) -> Result<TraceConfig, String> {
    const FORM: &str = "FILE[,events=blocks+traces+host+exits][,at=FIRST-LAST][,vcpu=N]";
    let (mut file, mut events, mut at, mut vcpu) = (None, None, None, None);
    for (index, part) in parts(text).iter().enumerate() {
        match part.split_once('=') {
            Some(("file", value)) => once(&mut file, "file", not_empty("file", value)?)?,
            Some(("events", value)) => once(&mut events, "events", trace_events(value)?)?,
            Some(("at", value)) => once(&mut at, "at", addresses(value)?)?,
            Some(("vcpu", value)) => {
                let number = value.parse().map_err(|_| format!("{value:?} is not a vCPU: write a number"))?;
                once(&mut vcpu, "vcpu", number)?;
            }
            _ if index == 0 => file = Some(not_empty("file", part)?),
            _ => return Err(format!("{part:?} is not known: write {FORM}")),
        }
    }
    let file = file.ok_or(format!("the file is missing: write {FORM}"))?;
    Ok(TraceConfig { file: file.into(), events: events.unwrap_or_default(), at, vcpu })
}

fn trace_events(text: &str) -> Result<Vec<TraceEvents>, String> {
    let event = |name: &str| match name {
        "blocks" => Ok(TraceEvents::Blocks),
        "traces" => Ok(TraceEvents::Traces),
        "host" => Ok(TraceEvents::Host),
        "exits" => Ok(TraceEvents::Exits),
        _ => Err(format!("{name:?} is no event: write blocks, traces, host, exits, with + in between")),
    };
    text.split('+').map(event).collect()
}

/// Two hexadecimal addresses with a hyphen between them.
fn addresses(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok();
    match text.split_once('-').map(|(first, last)| (number(first), number(last))) {
        Some((Some(first), Some(last))) if first <= last => Ok((first, last)),
        _ => Err(format!("{text:?} are no addresses: write FIRST-LAST in hexadecimal")),
    }
}

fn line_socket(text: &str) -> Result<LineSocketConfig, String> {
    let (mut path, mut log) = (None, None);
    for part in parts(text) {
        match part.split_once('=') {
            Some(("socket", value)) => once(&mut path, "socket", not_empty("socket", value)?)?,
            Some(("log", value)) => once(&mut log, "log", not_empty("log", value)?)?,
            _ => return Err(format!("{part:?} is not known: write socket=PATH[,log=FILE]")),
        }
    }
    let path = path.ok_or("`socket` is missing: write socket=PATH[,log=FILE]")?;
    Ok(LineSocketConfig { path: path.into(), log: log.map(PathBuf::from) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks() {
        let config = |path: &str, read_only, serial: Option<&str>| DiskConfig {
            read_only,
            serial: serial.map(str::to_owned),
            ..DiskConfig::new(path)
        };
        let qcow2 = DiskConfig {
            format: "qcow2".into(),
            allow: vec!["/base".into(), "b".into()],
            snapshot: Some("s".into()),
            ..config("a", true, None)
        };
        for (text, expected) in [
            ("a.img", Ok(config("a.img", false, None))),
            ("a.img,ro", Ok(config("a.img", true, None))),
            ("ro", Ok(config("ro", false, None))),
            ("/d/a,,b.img,serial=S1", Ok(config("/d/a,b.img", false, Some("S1")))),
            ("path=a=b.img,ro,serial=S", Ok(config("a=b.img", true, Some("S")))),
            ("serial=S,path=x", Ok(config("x", false, Some("S")))),
            ("a=b.img", Ok(config("a=b.img", false, None))),
            ("a,format=qcow2,ro,allow=/base,snapshot=s,allow=b", Ok(qcow2)),
            ("a,format=", Err("format")),
            ("", Err("path")),
            ("path=", Err("path")),
            ("a,path=b", Err("twice")),
            ("a,rw", Err("rw")),
            ("serial=S", Err("missing")),
        ] {
            match (disk(text), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{text}"),
                (Err(got), Err(word)) => assert!(got.contains(word), "{text}: {got}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn discs_and_buses() {
        let drive = |path: Option<&str>, media: Option<&str>| CdromConfig {
            path: path.map(Into::into),
            media: media.map(Into::into),
            bus: CdromBus::default(),
        };
        assert_eq!(cdrom("a.iso"), Ok(drive(Some("a.iso"), None)));
        assert_eq!(cdrom("empty,media=/isos"), Ok(drive(None, Some("/isos"))));
        assert_eq!(cdrom("path=empty,media=m"), Ok(drive(Some("empty"), Some("m"))));
        assert_eq!(disk("a,bus=ahci").unwrap().bus, DiskBus::Ahci);
        assert_eq!(disk("a,bus=scsi").unwrap().bus, DiskBus::Scsi);
        assert_eq!(cdrom("a.iso,bus=scsi").unwrap().bus, CdromBus::Scsi);
        assert!(cdrom("a.iso,bus=virtio").is_err());
        for text in ["", "a,media=", "a,ro", "a,path=b"] {
            assert!(cdrom(text).is_err(), "{text}");
        }
        assert!(disk("a,bus=ide").is_err());
    }

    #[test]
    fn nets() {
        assert_eq!(net("none"), Ok(Net(None)));
        assert_eq!(net("user"), Ok(Net(Some(NetConfig::User(UserNetConfig::default())))));
        let full =
            net("user,forward=2222:22,forward=[::1]:53:53/udp,mac=a6:41:72:00:00:01,restrict").unwrap();
        let Net(Some(NetConfig::User(user))) = full else { panic!() };
        assert_eq!(user.forward, ["2222:22", "[::1]:53:53/udp"]);
        assert!(user.restrict);
        let Ok(Net(Some(NetConfig::Switch(card)))) = net("switch=/run/s,key=ab,mtu=9000") else { panic!() };
        assert_eq!((card.socket, card.key.as_str(), card.mtu), ("/run/s".into(), "ab", 9000));
        for text in ["switch=/s", "switch=,key=a", "switch=/s,key=a,forward=1:1", "switch=/s,key=a,mtu=x"] {
            assert!(net(text).is_err(), "{text}");
        }
        for text in ["", "tap", "none,mac=1", "user,forward=22", "user,mac", "user,mac=1,mac=2", "user,mtu=1"]
        {
            assert!(net(text).is_err(), "{text}");
        }
    }

    #[test]
    fn traces() {
        let plain = TraceConfig { file: "t".into(), events: vec![], at: None, vcpu: None };
        assert_eq!(trace("t"), Ok(plain.clone()));
        let full = TraceConfig {
            events: vec![TraceEvents::Blocks, TraceEvents::Host],
            at: Some((0xff80, 0xffff)),
            vcpu: Some(1),
            ..plain
        };
        assert_eq!(trace("file=t,events=blocks+host,at=0xff80-ffff,vcpu=1"), Ok(full));
        for text in ["", "file=", "t,events=all", "t,at=5", "t,at=9-5", "t,at=x-y", "t,vcpu=-1", "t,t"] {
            assert!(trace(text).is_err(), "{text}");
        }
    }

    #[test]
    fn vsocks_and_character_devices() {
        assert_eq!(vsock("cid=3,socket=/run/v"), Ok(VsockConfig { cid: 3, socket: "/run/v".into() }));
        for text in ["", "cid=3", "socket=x", "cid=x,socket=y", "cid=3,cid=4,socket=y", "cid=3,socket="] {
            assert!(vsock(text).is_err(), "{text}");
        }
        assert_eq!(char_device("stdio"), Ok(CharDevice::Stdio));
        assert_eq!(char_device("none"), Ok(CharDevice::None));
        assert_eq!(char_device("file=a=b"), Ok(CharDevice::File("a=b".into())));
        let socket = LineSocketConfig { path: "/run/a,b".into(), log: Some("l".into()) };
        assert_eq!(char_device("socket=/run/a,,b,log=l"), Ok(CharDevice::Socket(socket)));
        for text in ["", "file=", "file", "pty", "stdio=1", "socket=", "socket=a,log=", "socket=a,x=y"] {
            assert!(char_device(text).is_err(), "{text}");
        }
    }
}
