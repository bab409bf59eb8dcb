//! The client against the real agent program's library, on this host and over a Unix socket: everything
//! that does no harm here. What needs a guest (identity, freezing, shutdown) is tested in guests.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use agent_client::qga::QgaFiles;
use agent_client::{Agent, Command, Endpoint, ErrorKind, ExecEvent, FileAttributes, GuestFiles, tree};
use api::agent::{AgentErrorKind, ExecParams, Exit, FileKind, Personality, WindowSize};

/// One agent for all tests of this program.
fn agent() -> Agent {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    let socket = SOCKET.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("arnia-agent-test-{}.sock", std::process::id()));
        let _ = fs::remove_file(&path);
        let address = agent::listen::Address::Unix(path.clone());
        thread::spawn(move || agent::listen::serve(&address));
        path
    });
    let agent = Agent::new(Endpoint::Direct(socket.clone()));
    agent.wait_until_ready(Duration::from_secs(20)).expect("the agent answers");
    agent
}

/// As whoever runs the tests.
fn me() -> String {
    fs::metadata("/proc/self").map(|me| std::os::unix::fs::MetadataExt::uid(&me).to_string()).expect("a user")
}

fn sh(line: &str) -> Command {
    Command::shell(line).user(me())
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("arnia-agent-client-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn programs_give_output_and_status() {
    let agent = agent();
    let finished = agent.run(&sh("echo out; echo err >&2; exit 7")).expect("it runs");
    assert_eq!((finished.exit, finished.text().as_str()), (Exit::Status(7), "out"));
    assert_eq!(finished.stderr, b"err\n");
    let killed = agent.run(&sh("kill -9 $$")).expect("it runs");
    assert_eq!(killed.exit, Exit::Signal(9));
    let mut command = sh("echo $GREETING; pwd");
    command.params.environment.insert("GREETING".into(), "hello there".into());
    command.params.directory = Some("/usr".into());
    assert_eq!(agent.run(&command).expect("it runs").text(), "hello there\n/usr");
}

#[test]
fn what_cannot_be_run_is_refused_with_a_reason() {
    let agent = agent();
    let mut missing = Command::new(["no-such-program"]).user(me());
    let error = agent.run(&missing).expect_err("there is no such program");
    assert_eq!(error.kind(), ErrorKind::Refused(AgentErrorKind::NotFound), "{error}");
    missing.params.user = Some("no-such-user".into());
    let error = agent.run(&missing).expect_err("there is no such user");
    assert!(error.to_string().contains("no-such-user"), "{error}");
    let odd = agent.run(&Command::new(["a\0b"]).user(me())).expect_err("a zero byte");
    assert_eq!(odd.kind(), ErrorKind::Refused(AgentErrorKind::Invalid));
}

#[test]
fn large_streams_go_both_ways_at_once() {
    let input: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 / 3) as u8).collect();
    let finished = agent().run(&sh("cat").input(input.clone())).expect("it runs");
    assert_eq!(finished.exit, Exit::Status(0));
    assert!(finished.stdout == input, "cat changed something");
}

#[test]
fn a_program_need_not_read() {
    // More than the window and all pipes hold: the sender must not hang once the program has ended.
    let finished = agent().run(&sh("exec <&-; sleep 0.2; echo done").input(vec![b'x'; 2_000_000]));
    assert_eq!(finished.expect("it runs").text(), "done");
}

#[test]
fn a_program_that_does_not_read_still_gets_signals() {
    let params = sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done").params;
    let (mut input, mut output) = agent().exec(&params).expect("it starts").split();
    assert_eq!(output.next_event().expect("it is ready"), ExecEvent::Stdout(b"ready\n".to_vec()));
    input.write(&vec![b'x'; 200_000]).expect("there is room in the window");
    input.signal(15).expect("it is sent");
    loop {
        if let ExecEvent::Exited(exit) = output.next_event().expect("it ends") {
            assert_eq!(exit, Exit::Status(5));
            break;
        }
    }
}

#[test]
fn a_terminal_is_one() {
    let size = WindowSize { rows: 33, columns: 101 };
    let agent = agent();
    let finished = agent.run(&sh("test -t 0 && test -t 1 && stty size && echo $TERM").terminal(size));
    let finished = finished.expect("it runs");
    assert_eq!(finished.exit, Exit::Status(0));
    assert_eq!(finished.text(), "33 101\r\nxterm-256color");

    let params = sh("stty -echo; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done");
    let params = params.terminal(size).params;
    let (mut input, mut output) = agent.exec(&params).expect("it starts").split();
    let mut text = String::new();
    let exit = loop {
        match output.next_event().expect("it goes on") {
            ExecEvent::Stdout(bytes) => {
                text += &String::from_utf8_lossy(&bytes);
                if text == "ready\r\n" {
                    input.resize(WindowSize { rows: 5, columns: 6 }).expect("it is sent");
                }
            }
            ExecEvent::Stderr(bytes) => panic!("a terminal has no second output: {bytes:?}"),
            ExecEvent::Exited(exit) => break exit,
        }
    };
    assert_eq!((exit, text.as_str()), (Exit::Status(0), "ready\r\n5 6\r\n"));

    // The end of input, and the interrupt key.
    let finished = agent.run(&sh("cat").terminal(size).input(*b"line\n")).expect("it runs");
    assert_eq!(finished.exit, Exit::Status(0));
    assert!(finished.text().contains("line"), "{finished:?}");
    let (mut input, mut output) =
        agent.exec(&sh("exec sleep 100").terminal(size).params).expect("it starts").split();
    input.write(&[3]).expect("it is sent");
    loop {
        if let ExecEvent::Exited(exit) = output.next_event().expect("it ends") {
            assert_eq!(exit, Exit::Signal(2));
            break;
        }
    }
}

#[test]
fn all_of_a_terminals_output_arrives() {
    let size = WindowSize { rows: 24, columns: 80 };
    for _ in 0..20 {
        let finished = agent().run(&sh("seq 1 5000").terminal(size)).expect("it runs");
        assert!(finished.text().ends_with("5000"), "the end is missing");
    }
}

#[test]
fn hanging_up_ends_the_program() {
    let folder = Folder::new("hangup");
    let (mark, gone) = (folder.path("mark"), folder.path("gone"));
    // The shell tells on its standard error that the hang-up ended `sleep`, too. Nobody reads that any more, and
    // SIGPIPE would end the shell before its trap: which comes first depends on where in the loop it is.
    let script = format!(
        "exec 2> /dev/null; trap 'touch {gone}; exit' HUP; touch {mark}; echo ready; while :; do sleep 0.05; done"
    );
    let params = sh(&script);
    let exec = agent().exec(&params.params).expect("it starts");
    let (input, mut output) = exec.split();
    output.next_event().expect("it is ready");
    drop((input, output));
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !PathBuf::from(&gone).exists() {
        assert!(std::time::Instant::now() < deadline, "the program was not told");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn files_go_both_ways() {
    let (agent, folder) = (agent(), Folder::new("files"));
    let content: Vec<u8> = (0..1_000_000_u32).map(|i| (i / 5) as u8).collect();
    let path = folder.path("a");
    let attributes = agent_client::FileAttributes { mode: Some(0o600), ..Default::default() };
    agent.write_file(&path, &attributes, &mut content.as_slice()).expect("it is written");
    let mut back = Vec::new();
    let attributes = agent.read_file(&path, &mut back).expect("it is read");
    assert!(back == content);
    assert_eq!((attributes.kind, attributes.size, attributes.mode), (FileKind::File, 1_000_000, 0o600));

    for (path, kind) in [
        (folder.path("none"), AgentErrorKind::NotFound),
        (folder.path(""), AgentErrorKind::Invalid),
        ("relative".to_owned(), AgentErrorKind::Invalid),
    ] {
        let error = agent.read_file(&path, &mut Vec::new()).expect_err("it is no file");
        assert_eq!(error.kind(), ErrorKind::Refused(kind), "{path}: {error}");
    }
}

/// Reads well at first.
struct Broken(usize);
impl std::io::Read for Broken {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0 += 1;
        if self.0 > 3 { Err(std::io::Error::other("the host's disk broke")) } else { Ok(buffer.len()) }
    }
}

#[test]
fn a_file_interrupted_is_not_there() {
    let (agent, folder) = (agent(), Folder::new("interrupted"));
    agent.write_file(&folder.path("a"), &Default::default(), &mut Broken(0)).expect_err("it breaks");
    // The agent notices when it reads the end of the connection.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while fs::read_dir(&folder.0).expect("a folder").count() > 0 {
        assert!(std::time::Instant::now() < deadline, "half a file was left");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn trees_go_both_ways() {
    let (agent, folder) = (agent(), Folder::new("tree"));
    for (path, text) in [("in/a", "one"), ("in/b/c", "two"), ("in/b/empty", "")] {
        let path = folder.0.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    std::os::unix::fs::symlink("/etc/passwd", folder.0.join("in/link")).expect("a link");
    let mut bytes = 0;
    tree::copy_in(&agent, &folder.0.join("in"), &folder.path("guest"), &mut |n| bytes += n)
        .expect("copied in");
    assert_eq!(bytes, 6);
    let out = folder.0.join("out");
    fs::create_dir(&out).expect("a folder");
    tree::copy_out(&agent, &folder.path("guest"), &out, &mut |_| ()).expect("copied out");
    let mut diff = std::process::Command::new("diff");
    diff.args(["-r", "--no-dereference"]).arg(folder.0.join("in")).arg(out.join("guest"));
    assert!(diff.status().expect("diff runs").success());

    // Again over what is there, with a link of the host where the guest has a file.
    let victim = folder.0.join("victim");
    fs::write(&victim, "precious").expect("a file");
    fs::remove_file(out.join("guest/a")).expect("it was there");
    std::os::unix::fs::symlink(&victim, out.join("guest/a")).expect("a link");
    tree::copy_out(&agent, &folder.path("guest"), &out, &mut |_| ()).expect("copied out again");
    assert_eq!(fs::read_to_string(&victim).expect("it is there"), "precious");
    assert_eq!(fs::read_to_string(out.join("guest/a")).expect("it is there"), "one");
}

#[test]
fn it_tells_what_the_system_is() {
    let agent = agent();
    let info = agent.info().expect("it answers");
    assert_eq!(info.version, api::agent::VERSION);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    assert_eq!(info.kernel, release.trim());
    assert!(agent.interfaces().expect("it answers").iter().any(|interface| interface.name == "lo"));
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let agent = agent();
    let mut personality = Personality::default();
    personality.identity.hostname = Some("not a host name".into());
    let error = agent.take_personality(&personality).expect_err("it is refused");
    assert_eq!(error.kind(), ErrorKind::Refused(AgentErrorKind::Invalid));
    let error = agent.freeze(Duration::ZERO).expect_err("it is refused");
    assert_eq!(error.kind(), ErrorKind::Refused(AgentErrorKind::Invalid));
    let params =
        ExecParams { command: vec!["true".into()], directory: Some("/none".into()), ..Default::default() };
    let error = agent.exec(&params).expect_err("it is refused");
    assert_eq!(error.kind(), ErrorKind::Refused(AgentErrorKind::NotFound));
    assert!(error.to_string().contains("/none"), "it is not the program that is missing: {error}");
}

#[test]
fn a_connection_that_breaks_the_protocol_is_closed() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let agent = agent();
    let cases: [&[u8]; 4] = [b"GET / HTTP/1.0\r\n\r\n", &[0xff; 64], &[0, 0, 0, 0, 3], &[1, 0, 0, 0, 4, 0]];
    for bytes in cases {
        let mut stream = UnixStream::connect(agent.socket()).expect("it listens");
        stream.write_all(bytes).expect("it is sent");
        let mut rest = Vec::new();
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        // Closed, whether after a word of explanation or without.
        let _ = stream.read_to_end(&mut rest).map_err(|error| {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it was not closed: {error}");
        });
    }
    agent.info().expect("it still serves others");
}

#[test]
fn qemus_agent_is_understood() {
    let Some(program) =
        ["/usr/sbin/qemu-ga", "/usr/bin/qemu-ga"].into_iter().find(|path| PathBuf::from(path).exists())
    else {
        eprintln!("skipped: this host has no qemu-ga (Debian package qemu-guest-agent)");
        return;
    };
    let folder = Folder::new("qga");
    // Nothing that would shut this host down or freeze it.
    let blocked =
        "guest-shutdown,guest-suspend-disk,guest-suspend-ram,guest-suspend-hybrid,guest-fsfreeze-freeze";
    let mut command = std::process::Command::new(program);
    command.args(["--method", "unix-listen", "--path", &folder.path("s"), "--statedir", &folder.path("")]);
    command.args(["--blacklist", blocked, "--pidfile", &folder.path("pid")]);
    let mut child = command.spawn().expect("it starts");
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let mut qga = loop {
        match agent_client::qga::Qga::connect(folder.0.join("s").as_path()) {
            Ok(qga) => break qga,
            Err(error) => assert!(std::time::Instant::now() < deadline, "no agent: {error}"),
        }
        thread::sleep(Duration::from_millis(20));
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        qga.ping().expect("it answers");
        let (version, commands) = qga.info().expect("it answers");
        assert!(
            !version.is_empty() && commands.iter().any(|name| name == "guest-exec"),
            "{version} {commands:?}"
        );
        let limit = Duration::from_secs(30);
        let finished =
            qga.run("/bin/sh", &["-c", "cat; echo err >&2; exit 3"], b"in", limit).expect("it runs");
        assert_eq!((finished.exit, finished.text().as_str()), (Exit::Status(3), "in"));
        assert_eq!(finished.stderr, b"err\n");
        assert!(!qga.is_frozen().expect("it answers"));
        assert!(qga.interfaces().expect("it answers").iter().any(|interface| interface.name == "lo"));
        let error = qga.freeze().expect_err("it is blocked");
        assert!(matches!(error.kind(), ErrorKind::Refused(_)), "{error}");
        qga.run("/no/such/program", &[], b"", limit).expect_err("there is none");
        let error = qga.run("/bin/sh", &["-c", "yes | head -c 20000000"], b"", limit).expect_err("too much");
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        drop(qga);
        qemus_files(&QgaFiles::new(folder.0.join("s")), &Folder::new("qga-files"));
    }));
    child.kill().expect("it ends");
    child.wait().expect("it ends");
    result.expect("all of it");
}

/// The same as with our agent, by an agent that knows only bytes of files and programs.
fn qemus_files(agent: &QgaFiles, folder: &Folder) {
    let (path, content) = (folder.path("a file"), vec![0x5a_u8; 700_001]);
    let attributes = FileAttributes { mode: Some(0o4640), uid: Some(1), gid: Some(2) };
    agent.write_file(&path, &attributes, &mut content.as_slice()).expect("it is written");
    let found = agent.stat(&path, false).expect("it is there");
    assert_eq!((found.kind, found.mode, found.uid, found.gid), (FileKind::File, 0o4640, 1, 2));
    assert_eq!(found.size, content.len() as u64);
    let mut back = Vec::new();
    agent.read_file(&path, &mut back).expect("it is read");
    assert!(back == content, "what came back differs");

    // What it was before stays, through a link; and nothing is left of what was begun.
    agent.make_link(&folder.path("link"), "a file").expect("a link");
    agent.make_link(&folder.path("link"), "a file").expect("in place of itself");
    assert_eq!(
        agent.stat(&folder.path("link"), false).expect("it is there").target.as_deref(),
        Some("a file")
    );
    agent.write_file(&folder.path("link"), &Default::default(), &mut &b""[..]).expect("it is written");
    let found = agent.stat(&folder.path("link"), true).expect("it is there");
    assert_eq!((found.size, found.mode, found.uid), (0, 0o4640, 1));
    agent.write_file(&path, &Default::default(), &mut Broken(0)).expect_err("it breaks");
    assert_eq!(agent.stat(&path, false).expect("it is there").size, 0);

    agent.make_folder(&folder.path("deep/er"), Some(0o700)).expect("a folder");
    agent.make_folder(&folder.path("deep/er"), None).expect("it is there already");
    let odd = "new\nline \'\"$(x) -rf";
    agent.write_file(&folder.path(odd), &Default::default(), &mut &b"1"[..]).expect("whatever its name");
    let listed = agent.list(&folder.path("")).expect("a list");
    let names: Vec<&str> = listed.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a file", "deep", "link", odd]);
    assert_eq!(listed[1].attributes.kind, FileKind::Folder);
    assert_eq!(listed[2].attributes.target.as_deref(), Some("a file"));
    assert_eq!(agent.list(&folder.path("deep/er")).expect("a list"), []);

    let kind = |result: Result<(), agent_client::Error>| result.map_err(|error| error.kind());
    let refused = |kind| Err(ErrorKind::Refused(kind));
    let missing = folder.path("none/x");
    assert_eq!(kind(agent.stat(&missing, true).map(drop)), refused(AgentErrorKind::NotFound));
    assert_eq!(kind(agent.read_file(&missing, &mut Vec::new()).map(drop)), refused(AgentErrorKind::NotFound));
    assert_eq!(kind(agent.list(&missing).map(drop)), refused(AgentErrorKind::NotFound));
    let written = agent.write_file(&missing, &Default::default(), &mut &b""[..]);
    assert_eq!(kind(written), refused(AgentErrorKind::NotFound));
    assert_eq!(kind(agent.list(&path).map(drop)), refused(AgentErrorKind::Invalid));
    assert_eq!(kind(agent.make_link(&path, "x")), refused(AgentErrorKind::Invalid));
    for bad in [folder.path("deep"), "/dev/null".into(), "no/path".into()] {
        assert_eq!(
            kind(agent.read_file(&bad, &mut Vec::new()).map(drop)),
            refused(AgentErrorKind::Invalid),
            "{bad}"
        );
        let written = agent.write_file(&bad, &Default::default(), &mut &b""[..]);
        assert_eq!(kind(written), refused(AgentErrorKind::Invalid), "{bad}");
    }
}
