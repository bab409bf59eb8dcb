//! What takes its time (streams of events, consoles, programs in guests, files on their way) ends with the right to it.

mod rig;

use api::agent::ExecParams;
use api::v1::access::{Grant, Role, TokenParams, UserParams};
use api::v1::error::ErrorCode;
use api::v1::project::ProjectParams;
use client::{Client, Console, Download, Exec, Message};
use futures_util::{FutureExt, StreamExt};
use rig::{Daemon, block_on, run};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

#[test]
fn part() {
    rig::part();
}

/// Only a guard against waiting for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// What somebody has open.
struct Open {
    console: Console,
    exec: Exec,
    events: Option<UnixStream>,
    download: Download,
    upload: JoinHandle<Result<(), client::Error>>,
    /// Of which something is sent, and then nothing more: its end is not the file's.
    _unsent: mpsc::Sender<io::Result<Vec<u8>>>,
}

/// The code of the reason for which the program's connection has ended.
async fn ended(open: Open) -> ErrorCode {
    tokio::time::timeout(PATIENCE, last_words(open)).await.expect("it ends")
}

async fn last_words(open: Open) -> ErrorCode {
    let Open { mut console, mut exec, events, mut download, upload, _unsent } = open;
    let last = console.next().await.expect("a last message").expect("a message");
    let Message::Close(Some(frame)) = last else { panic!("the console said {last:?}") };
    assert_eq!(u16::from(frame.code), 1008, "{frame:?}");
    assert!(!frame.reason.is_empty());
    if let Some(mut events) = events {
        events.read_to_end(&mut Vec::new()).await.expect("the stream of events ends as it should");
    }
    // The guest's file has no end: that it comes to one is the daemon's doing, and shows as a break.
    let broken = loop {
        match download.piece().await {
            Ok(Some(_)) => {}
            end => break end.is_err(),
        }
    };
    assert!(broken, "a part is taken for the whole file");
    let code = exec.output.next().await.expect_err("the program is not mine any more").api().code;
    let upload = upload.await.expect("an answer").expect_err("not all of it was sent");
    assert_eq!(upload.api().code, code, "{upload}");
    code
}

/// A user of this name, who may work in the project, and the secret and identity of a token.
fn user(owner: &Client, name: &str, project: &str, lifetime: Option<i64>) -> (String, String) {
    let grants = vec![Grant { project: Some(project.into()), role: Role::Operator }];
    let params = UserParams { name: name.into(), description: String::new(), grants };
    block_on(owner.user_create(&params)).expect("a user");
    let params = TokenParams { lifetime, ..rig::token_params(name, None) };
    let made = block_on(owner.token_create(&params)).expect("a token");
    (made.secret.expect("a secret"), made.token.id)
}

async fn open(daemon: &Daemon, project: &str, secret: &str) -> Open {
    let client = daemon.client(project).with_token(secret);
    let console = client.vm_console("web").await.expect("a console");
    let params = ExecParams { command: vec!["sleep".into()], ..ExecParams::default() };
    let exec = client.vm_exec("web", &params, 0).await.expect("a program");
    let socket = rig::config(&daemon.folder).paths.socket();
    let mut events = UnixStream::connect(socket).await.expect("the daemon's socket");
    let request = format!(
        "GET /v1/events?project={project} HTTP/1.1\r\nHost: arnia\r\nConnection: close\r\n\
         Authorization: Bearer {secret}\r\n\r\n"
    );
    events.write_all(request.as_bytes()).await.expect("a request");
    let mut status = [0; 12];
    events.read_exact(&mut status).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 200");
    let mut download = client.file_read("web", "/dev/zero").await.expect("a file");
    download.piece().await.expect("a piece").expect("a piece");
    let (unsent, pieces) = mpsc::channel(1);
    unsent.send(Ok(vec![1; 4096])).await.expect("somebody reads");
    let upload =
        tokio::spawn(async move { client.file_write("web", "/srv/file", None, false, pieces).await });
    Open { console, exec, events: Some(events), download, upload, _unsent: unsent }
}

#[test]
fn what_is_open_ends_with_the_right_to_it() {
    let daemon = Daemon::new("rights");
    let owner = daemon.client("default");
    let lab = ProjectParams { name: "lab".into(), description: String::new(), quota: Default::default() };
    block_on(owner.project_create(&lab)).expect("a project");
    let in_lab = daemon.client("lab");
    run(&in_lab, &daemon.params("web", "agent", true), "k");

    let patch = |user: &str, text: &str| {
        let headers = [("content-type", "application/merge-patch+json")];
        let path = format!("/v1/users/{user}");
        let (status, body) =
            block_on(owner.send("PATCH", &path, &headers, text.as_bytes().to_vec())).expect("an answer");
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let (bystander, _) = user(&owner, "bystander", "lab", None);
    let mut unharmed = runtime.block_on(open(&daemon, "lab", &bystander));
    type Loss<'a> = &'a dyn Fn(&str);
    let cases: [(&str, Option<i64>, ErrorCode, Loss<'_>); 5] = [
        ("token", None, ErrorCode::Unauthenticated, &|token| {
            block_on(owner.token_delete(token)).expect("it goes");
        }),
        ("user", None, ErrorCode::Unauthenticated, &|_| {
            block_on(owner.user_delete("user")).expect("it goes");
        }),
        ("viewer", None, ErrorCode::Forbidden, &|_| {
            patch("viewer", r#"{"grants": [{"project": "lab", "role": "viewer"}]}"#);
        }),
        ("elsewhere", None, ErrorCode::NotFound, &|_| {
            patch("elsewhere", r#"{"grants": [{"project": "default", "role": "admin"}]}"#);
        }),
        // Long enough to open all of it first.
        ("time", Some(5), ErrorCode::Unauthenticated, &|_| {}),
    ];
    for (name, lifetime, expected, lose) in cases {
        let (secret, token) = user(&owner, name, "lab", lifetime);
        let mut open = runtime.block_on(open(&daemon, "lab", &secret));
        lose(&token);
        // A viewer may see events all the same.
        let events = if name == "viewer" { open.events.take() } else { None };
        assert_eq!(runtime.block_on(ended(open)), expected, "{name}");
        if let Some(mut events) = events {
            patch(name, r#"{"description": "still a viewer"}"#);
            let more =
                runtime.block_on(async { events.read_exact(&mut [0; 1 << 16]).now_or_never().is_some() });
            assert!(!more, "a viewer's events end");
        }
    }
    // Nobody else has noticed.
    runtime.block_on(async {
        assert!(unharmed.console.next().now_or_never().is_none(), "somebody else's console");
        assert!(unharmed.exec.output.next().now_or_never().is_none(), "somebody else's program");
        assert!(!unharmed.upload.is_finished(), "somebody else's file");
        for _ in 0..100 {
            unharmed.download.piece().await.expect("somebody else's file").expect("a piece");
        }
    });
}
