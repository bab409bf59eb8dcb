//! Archives, a web server and a real registry on the loopback, kind and hostile ones.

use super::*;
use crate::files::tests::Folder;
use crate::progress::Silent;
use crate::sign::generate_key;
use crate::store::tests::add;
use std::collections::HashMap;
use std::io::BufRead;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

#[test]
fn places_are_read() {
    let http = |folder: &str, tag: &str| Some(Place::Http { folder: folder.into(), tag: tag.into() });
    let oci = |registry: &str, repository: &str, tag: &str| {
        Some(Place::Oci { registry: registry.into(), repository: repository.into(), tag: tag.into() })
    };
    for (text, place) in [
        ("https://a.example/images/debian/12.json", http("https://a.example/images/debian/", "12")),
        ("oci://ghcr.io/team/debian:12", oci("https://ghcr.io", "team/debian", "12")),
        ("oci://127.0.0.1:5000/debian", oci("http://127.0.0.1:5000", "debian", "latest")),
        ("oci://localhost/debian:12", oci("http://localhost", "debian", "12")),
        ("oci://ghcr.io", None),
        ("oci://ghcr.io/../x", None),
        ("https://a.example", None),
        ("https://a.example/x", None),
        ("https://a.example/.json", None),
        ("ftp://a.example/x.json", None),
        ("https://a.example/a b.json", None),
        ("debian", None),
    ] {
        assert_eq!(Place::parse(text).ok(), place, "{text}");
    }
    assert_eq!(
        Place::parse("https://a/debian/12.json").unwrap().default_name().unwrap().to_string(),
        "debian:12"
    );
}

/// A web server for one folder of files in memory: GET with ranges, HEAD, PUT. It can be told to break off
/// answers after some bytes.
struct WebServer {
    port: u16,
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    limit: Arc<Mutex<Option<usize>>>,
    ranges: Arc<Mutex<Vec<String>>>,
}

impl WebServer {
    fn start() -> WebServer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = WebServer {
            port: listener.local_addr().unwrap().port(),
            files: Arc::default(),
            limit: Arc::default(),
            ranges: Arc::default(),
        };
        let (files, limit, ranges) = (server.files.clone(), server.limit.clone(), server.ranges.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, limit, ranges) = (files.clone(), limit.clone(), ranges.clone());
                thread::spawn(move || answer(stream, &files, &limit, &ranges));
            }
        });
        server
    }

    fn place(&self, path: &str) -> Place {
        Place::parse(&format!("http://127.0.0.1:{}/{path}", self.port)).unwrap()
    }
}

fn answer(
    stream: TcpStream,
    files: &Mutex<HashMap<String, Vec<u8>>>,
    limit: &Mutex<Option<usize>>,
    ranges: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut len, mut range) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length: ") {
            len = value.parse().ok()?;
        } else if let Some(value) = header.strip_prefix("range: bytes=") {
            ranges.lock().unwrap().push(value.to_owned());
            range = value.strip_suffix('-')?.parse::<usize>().ok();
        }
    }
    let close = "Connection: close\r\n\r\n";
    if method == "PUT" {
        let mut body = vec![0; len];
        reader.read_exact(&mut body).ok()?;
        files.lock().unwrap().insert(path, body);
        return stream
            .write_all(format!("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n{close}").as_bytes())
            .ok();
    }
    let Some(body) = files.lock().unwrap().get(&path).cloned() else {
        return stream
            .write_all(format!("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n{close}").as_bytes())
            .ok();
    };
    let from = range.filter(|from| *from < body.len()).unwrap_or(0);
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let rest = &body[from..];
    stream
        .write_all(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{close}", rest.len()).as_bytes())
        .ok()?;
    if method == "GET" {
        let limit = limit.lock().unwrap().filter(|_| path.contains("/blobs/")).unwrap_or(usize::MAX);
        stream.write_all(&rest[..rest.len().min(limit)]).ok()?;
    }
    Some(())
}

fn stores(folder: &Folder) -> (Store, Store) {
    let [one, two] = ["one", "two"].map(|name| Store::open(folder.0.join(name)).unwrap());
    (one, two)
}

/// A text that zstd cannot make much of.
fn noise() -> String {
    let mut state = 7_u64;
    (0..40_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'!' + (state >> 58) as u8)
        })
        .collect()
}

#[test]
fn an_interrupted_pull_goes_on_where_it_stopped() {
    let folder = Folder::new("http");
    let (one, two) = stores(&folder);
    let image = add(&one, "web", &noise());
    let server = WebServer::start();
    push(&one, image, &server.place("web/1.json"), None, &mut Silent).unwrap();
    push(&one, image, &server.place("web/1.json"), None, &mut Silent).unwrap();
    *server.limit.lock().unwrap() = Some(10_000);
    let error = pull(&two, &server.place("web/1.json"), &PullOptions::default(), &mut Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transfer, "{error}");
    assert!(two.list().unwrap().is_empty());
    *server.limit.lock().unwrap() = None;
    assert_eq!(pull(&two, &server.place("web/1.json"), &PullOptions::default(), &mut Silent).unwrap(), image);
    two.check(image, &mut Silent).unwrap();
    assert_eq!(*server.ranges.lock().unwrap(), ["10000-"], "it began anew");
    assert_eq!(two.by_name(&"web:1".parse().unwrap()).unwrap(), image);
    let missing = pull(&two, &server.place("web/2.json"), &PullOptions::default(), &mut Silent).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Transfer);
}

#[test]
fn a_server_that_gives_something_else_is_found_out() {
    let folder = Folder::new("hostile");
    let (one, two) = stores(&folder);
    let image = add(&one, "web", &noise());
    let server = WebServer::start();
    push(&one, image, &server.place("web/1.json"), None, &mut Silent).unwrap();
    let disk = one.manifest(image).unwrap().disks[0].blob;
    let path = format!("/web/blobs/{}", digest_file_name(disk.digest));
    // Other data of the same length, a bomb, nonsense, too much of it, nothing.
    let other = zstd::encode_all(vec![7; disk.size as usize].as_slice(), 1).unwrap();
    let bomb = zstd::encode_all(std::io::repeat(0).take(1 << 30), 1).unwrap();
    for data in [other, bomb, vec![0xff; 100], vec![1; 4 << 20], Vec::new()] {
        server.files.lock().unwrap().insert(path.clone(), data);
        let error =
            pull(&two, &server.place("web/1.json"), &PullOptions::default(), &mut Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unverified, "{error}");
        assert!(two.list().unwrap().is_empty());
        assert_eq!(fs::read_dir(two.folder().join("partial")).unwrap().count(), 0, "something was left");
    }
    server.files.lock().unwrap().insert("/web/1.json".into(), b"{}".to_vec());
    let error = pull(&two, &server.place("web/1.json"), &PullOptions::default(), &mut Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unverified, "{error}");
}

#[test]
fn a_server_without_tls_is_told_from_none() {
    let folder = Folder::new("plain");
    let (one, _) = stores(&folder);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    // Once, as servers answer what they do not understand.
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let place = Place::parse(&format!("https://127.0.0.1:{port}/web/1.json")).unwrap();
    let error = pull(&one, &place, &PullOptions::default(), &mut Silent).unwrap_err();
    server.join().unwrap();
    assert!(error.remedy().is_some_and(|remedy| remedy.contains("no TLS")), "{error:?}");
}

#[test]
fn only_signed_images_are_pulled_if_a_key_is_given() {
    let folder = Folder::new("signed");
    let (one, two) = stores(&folder);
    let image = add(&one, "web", "content");
    let server = WebServer::start();
    let place = server.place("web/1.json");
    let (key, other) = (folder.0.join("key"), folder.0.join("other"));
    let ours = generate_key(&key, None).unwrap();
    let theirs = generate_key(&other, None).unwrap();
    push(&one, image, &place, None, &mut Silent).unwrap();
    let with = |keys: &[&TrustedKey]| PullOptions {
        keys: keys.iter().map(|key| (*key).clone()).collect(),
        ..PullOptions::default()
    };
    let error = pull(&two, &place, &with(&[&ours]), &mut Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unverified, "{error}");
    sign::sign(&one, image, &other, None).unwrap();
    sign::sign(&one, image, &key, None).unwrap();
    push(&one, image, &place, None, &mut Silent).unwrap();
    assert_eq!(pull(&two, &place, &with(&[&ours]), &mut Silent).unwrap(), image);
    // Nobody has looked at the other's signature.
    assert_eq!(sign::signers(&two, image, &[ours.clone(), theirs]).unwrap(), [ours.id()]);
    // Changed by as much as a blank, it is not what was signed.
    let mut changed = one.manifest_bytes(image).unwrap();
    changed.push(b' ');
    server.files.lock().unwrap().insert("/web/1.json".into(), changed);
    let error = pull(&two, &place, &with(&[&ours]), &mut Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unverified, "{error}");
}

#[test]
fn a_bogus_signature_replaces_no_good_one() {
    let folder = Folder::new("bogus");
    let (one, two) = stores(&folder);
    let (image, other) = (add(&one, "web", "content"), add(&one, "other", "other content"));
    let key = folder.0.join("key");
    let ours = generate_key(&key, None).unwrap();
    sign::sign(&one, image, &key, None).unwrap();
    sign::sign(&one, other, &key, None).unwrap();
    let (id, good) = one.signatures(image).unwrap().remove(0);
    // It claims the same key, and is of another image.
    let (_, bogus) = one.signatures(other).unwrap().remove(0);
    let server = WebServer::start();
    let place = server.place("web/1.json");
    push(&one, image, &place, None, &mut Silent).unwrap();
    let serve = |text: &str| {
        server.files.lock().unwrap().insert("/web/1.json.minisig".into(), text.as_bytes().to_vec());
    };
    let with_key = PullOptions { keys: vec![ours.clone()], ..PullOptions::default() };
    let there = |text: &str| assert_eq!(two.signatures(image).unwrap(), [(id.clone(), text.to_owned())]);

    pull(&two, &place, &with_key, &mut Silent).unwrap();
    serve(&bogus);
    pull(&two, &place, &PullOptions::default(), &mut Silent).unwrap();
    there(&good);
    serve(&(good.clone() + &bogus));
    pull(&two, &place, &with_key, &mut Silent).unwrap();
    there(&good);
    let path = folder.0.join("bogus.tar");
    one.session().unwrap().add_signature(image, &id, &bogus).unwrap();
    archive::export(&one, image, &path, &mut Silent).unwrap();
    let name = "web:1".parse().unwrap();
    archive::import(&two, &mut File::open(&path).unwrap(), &name, &[], &mut Silent).unwrap();
    there(&good);
    // What is good takes the place of what is not.
    two.session().unwrap().add_signature(image, &id, &bogus).unwrap();
    serve(&good);
    pull(&two, &place, &with_key, &mut Silent).unwrap();
    there(&good);
}

#[test]
fn a_download_that_was_removed_meanwhile_is_opened_anew() {
    let folder = Folder::new("download");
    let path = folder.0.join("download");
    let first = lock_download(&path).unwrap();
    thread::scope(|scope| {
        let second = scope.spawn(|| lock_download(&path).unwrap());
        // Until it waits for the lock, most likely.
        thread::sleep(std::time::Duration::from_millis(100));
        fs::remove_file(&path).unwrap();
        drop(first);
        second.join().unwrap().write_all(b"data").unwrap();
    });
    assert_eq!(fs::read(&path).unwrap(), b"data", "it was written where nobody finds it");
}

/// The reference implementation of registries, from Debian's package docker-registry.
struct Registry {
    child: std::process::Child,
    port: u16,
}

impl Registry {
    fn start(folder: &Path) -> Option<Registry> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?.local_addr().ok()?.port();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
            folder.join("registry").display()
        );
        fs::write(folder.join("registry.yml"), config).ok()?;
        let mut command = std::process::Command::new("docker-registry");
        command.arg("serve").arg(folder.join("registry.yml"));
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let registry = Registry { child: command.spawn().ok()?, port };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(std::time::Instant::now() < deadline, "the registry does not come up");
            thread::sleep(std::time::Duration::from_millis(20));
        }
        Some(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_registry_takes_and_gives_images() {
    let folder = Folder::new("oci");
    let Some(registry) = Registry::start(&folder.0) else {
        eprintln!("skipped: this host has no docker-registry");
        return;
    };
    let (one, two) = stores(&folder);
    let image = add(&one, "web", &noise());
    let key = folder.0.join("key");
    let ours = generate_key(&key, None).unwrap();
    sign::sign(&one, image, &key, None).unwrap();
    let place = Place::parse(&format!("oci://127.0.0.1:{}/team/web:1", registry.port)).unwrap();
    push(&one, image, &place, None, &mut Silent).unwrap();
    push(&one, image, &place, None, &mut Silent).unwrap();
    let options = PullOptions { keys: vec![ours], ..PullOptions::default() };
    assert_eq!(pull(&two, &place, &options, &mut Silent).unwrap(), image);
    two.check(image, &mut Silent).unwrap();
    assert_eq!(two.by_name(&"team/web:1".parse().unwrap()).unwrap(), image);
    let none = Place::parse(&format!("oci://127.0.0.1:{}/team/none:1", registry.port)).unwrap();
    let error = pull(&two, &none, &PullOptions::default(), &mut Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transfer, "{error}");
}

#[test]
fn archives_go_round() {
    let folder = Folder::new("archive");
    let (one, two) = stores(&folder);
    let image = add(&one, "web", &noise());
    let path = folder.0.join("web.tar");
    archive::export(&one, image, &path, &mut Silent).unwrap();
    archive::export(&one, image, &path, &mut Silent).expect_err("it is there already");
    assert!(archive::is_archive(&path));
    let name: ImageName = "copy:1".parse().unwrap();
    let import = |bytes: &[u8]| archive::import(&two, &mut &bytes[..], &name, &[], &mut Silent);
    let bytes = fs::read(&path).unwrap();
    // Cut short anywhere, it is refused.
    for len in [0, 100, 512, 1024, 3000, bytes.len() / 2] {
        let error = import(&bytes[..len]).unwrap_err();
        assert!([ErrorKind::BadInput, ErrorKind::Unverified].contains(&error.kind()), "{len}: {error}");
    }
    assert!(two.names().unwrap().is_empty());
    assert_eq!(import(&bytes).unwrap(), image);
    two.check(image, &mut Silent).unwrap();
}

#[test]
fn malicious_archives_are_refused() {
    let folder = Folder::new("malicious");
    let (one, two) = stores(&folder);
    let image = add(&one, "web", "content");
    let manifest = one.manifest_bytes(image).unwrap();
    let disk = one.manifest(image).unwrap().disks[0].blob;
    let blob = format!("blobs/{}", digest_file_name(disk.digest));
    let bomb = zstd::encode_all(std::io::repeat(0).take(1 << 30), 1).unwrap();
    let victim = folder.0.join("victim");
    let regular = tar::EntryType::Regular;
    let good = ("manifest.json".to_owned(), regular, manifest);
    let cases: Vec<Vec<(String, tar::EntryType, Vec<u8>)>> = vec![
        vec![(blob.clone(), regular, bomb.clone()), good.clone()],
        vec![good.clone(), (victim.display().to_string(), regular, b"x".to_vec())],
        vec![good.clone(), ("../../victim".into(), regular, b"x".to_vec())],
        vec![good.clone(), ("blobs/../../../victim".into(), regular, b"x".to_vec())],
        vec![good.clone(), (blob.clone(), tar::EntryType::Symlink, Vec::new())],
        vec![good.clone(), ("blobs".into(), tar::EntryType::Directory, Vec::new())],
        vec![good.clone(), (blob.clone(), tar::EntryType::Char, Vec::new())],
        vec![good.clone(), (blob.clone(), regular, bomb)],
        vec![good.clone(), (blob, regular, vec![0; 1 << 20])],
        vec![good.clone(), good.clone()],
        vec![good],
        vec![("manifest.json".into(), regular, vec![b' '; 2 << 20])],
        Vec::new(),
    ];
    for (number, entries) in cases.into_iter().enumerate() {
        let mut bytes = Vec::new();
        for (name, kind, content) in entries {
            // By hand: the crate does not write such names.
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len().min(100)]
                .copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
            header.set_size(content.len() as u64);
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_cksum();
            bytes.extend(header.as_bytes());
            bytes.extend(&content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.extend([0; 1024]);
        let error = archive::import(&two, &mut bytes.as_slice(), &"x".parse().unwrap(), &[], &mut Silent)
            .unwrap_err();
        assert!(
            [ErrorKind::BadInput, ErrorKind::Unverified].contains(&error.kind()),
            "case {number}: {error}"
        );
        assert!(!victim.exists() && two.names().unwrap().is_empty(), "case {number}");
    }
}
