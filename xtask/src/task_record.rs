//! `cargo xtask record`: the terminal recordings that README shows. The real programs play the scenes of
//! `docs/recordings`; what a terminal shows meanwhile becomes an animated picture.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::task_build;
use crate::workspace::Workspace;
use crate::{apt, host, pypi};

/// Draws the pictures.
const RENDERER: &str = "termtosvg==1.1.0";
/// It asks this for its own files; newer ones no longer have what it asks for.
const RENDERER_NEEDS: &str = "setuptools<80";
/// Columns and lines of the terminal.
const GEOMETRY: &str = "96x26";
/// No picture stays longer, however long a command takes; so much the recordings are shorter than what they show.
const LONGEST_MS: &str = "2500";
/// Before it begins anew.
const PAUSE_MS: &str = "4000";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these scenes of docs/recordings
    #[arg(value_name = "SCENE")]
    scenes: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    apt::ensure(&[apt::BUILD, apt::IMAGES, apt::QEMU_TOOLS])?;
    let workspace = Workspace::locate()?;
    task_build::build_all(&workspace)?;
    let folder = workspace.target().join("recordings");
    let renderer = pypi::install(&folder.join("renderer"), RENDERER, "termtosvg")?;
    host::run(Command::new(folder.join("renderer/bin/pip")).args(["install", "--quiet", RENDERER_NEEDS]))?;
    let scenes = workspace.root().join("docs/recordings");
    let names = if args.scenes.is_empty() { all(&scenes)? } else { args.scenes.clone() };
    let stage = Stage::start(&workspace, folder.join("home"))?;
    // The image is built before anybody looks.
    host::run(&mut stage.command("arnia run debian --name rehearsal --rm -- true"))?;
    for name in names {
        let scene = scenes.join(&name).with_extension("scene");
        ensure!(scene.is_file(), "there is no scene {}", scene.display());
        let picture = scene.with_extension("svg");
        let play = format!("{} {}", scenes.join("play").display(), scene.display());
        let render = format!(
            "'{}' '{}' -c '{play}' -g {GEOMETRY} -M {LONGEST_MS} -D {PAUSE_MS} -t gjm8",
            renderer.display(),
            picture.display()
        );
        // The renderer wants a terminal of its own, whose size it takes for the picture's.
        let (columns, lines) = GEOMETRY.split_once('x').context("columns and lines")?;
        let render = format!("stty cols {columns} rows {lines}; {render}");
        let mut script = stage.command("script --quiet --return --command \"$RENDER\" /dev/null");
        host::run(script.env("RENDER", render))?;
        println!("{}", picture.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The names of all scenes.
fn all(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if let (Some("scene"), Some(name)) = (path.extension().and_then(|it| it.to_str()), path.file_stem()) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// A daemon with images and machines of its own, and an empty folder to be in.
struct Stage {
    daemon: Child,
    home: PathBuf,
    programs: PathBuf,
    folder: PathBuf,
}

impl Stage {
    fn start(workspace: &Workspace, home: PathBuf) -> Result<Stage> {
        let programs = workspace.target().join("release");
        let folder = std::env::temp_dir().join(format!("arnia-stage-{}", std::process::id()));
        fs::create_dir_all(&home)?;
        fs::create_dir_all(&folder)?;
        let mut daemon = Command::new(programs.join("arnia"));
        daemon.arg("daemon").env("ARNIA_HOME", &home);
        daemon.stderr(fs::File::create(home.with_extension("log"))?);
        let daemon = daemon.spawn().context("arnia")?;
        let mut stage = Stage { daemon, home, programs, folder };
        let begun = Instant::now();
        while !stage.command("arnia ls >/dev/null 2>&1").status()?.success() {
            if stage.daemon.try_wait()?.is_some() || begun.elapsed() > Duration::from_secs(60) {
                bail!("the daemon does not answer; look at {}", stage.home.with_extension("log").display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(stage)
    }

    /// A command of a shell, as somebody who sits here would type it.
    fn command(&self, line: &str) -> Command {
        let path = format!("{}:{}", self.programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(&self.folder);
        command.env("ARNIA_HOME", &self.home).env("PATH", path).env("TERM", "xterm-256color");
        command
    }

    /// Removes what a scene that failed has left.
    fn clear(&self) -> Result<()> {
        let machines = host::output(&mut self.command("arnia ls -o json"))?;
        let machines: serde_json::Value = serde_json::from_str(&machines)?;
        for name in machines.as_array().into_iter().flatten().filter_map(|machine| machine["name"].as_str()) {
            host::run(&mut self.command(&format!("arnia rm --force {name}")))?;
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.clear();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
