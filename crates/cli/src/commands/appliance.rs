//! Images that are run from where they are: fetched, and verified before anything of them runs.

use super::image::{Trust, Watch, explain, fetch_there};
use crate::connect::{default_paths, image_folder};
use crate::{Context, Error};
use api::image::ImageName;
use client::Client;
use image::import::{ImportOptions, import};
use image::sign;
use image::transfer::{Place, archive};
use image::{ErrorKind, Store};
use std::path::Path;

/// The name of the image that is meant. One that is elsewhere is fetched under its name there; one in a file is called
/// like the file.
pub(super) async fn fetch(
    context: &Context,
    client: &Client,
    what: &str,
    trust: &Trust,
) -> Result<String, Error> {
    let path = Path::new(what);
    if ["https://", "http://", "oci://"].iter().any(|scheme| what.starts_with(scheme)) {
        pull(client, what, trust).await
    } else if is_file(path) {
        take(context, path, trust)
    } else if trust.is_given() {
        Err(Error::bad_input(format!("{what} is an image that is here already, and nothing is verified"))
            .with_remedy(format!(
                "leave --key and --allow-unsigned out; `arnia image verify {what}` verifies it"
            )))
    } else {
        Ok(what.to_owned())
    }
}

/// Whether a file is meant and not a name. Names have no such endings, unless somebody is bent on it.
fn is_file(path: &Path) -> bool {
    const ENDINGS: [&str; 9] = ["tar", "ova", "ovf", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "raw"];
    let text = path.to_string_lossy();
    let as_path = ["/", "./", "../"].iter().any(|start| text.starts_with(start));
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    as_path || ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) && path.is_file()
}

async fn pull(client: &Client, place: &str, trust: &Trust) -> Result<String, Error> {
    let keys = trust.keys_to_run()?;
    let name = Place::parse(place).map_err(explain)?.default_name();
    let name = name.ok_or_else(|| {
        Error::bad_input(format!("{place} gives the image no name"))
            .with_remedy(format!("fetch it with `arnia image pull {place} --name NAME`, and run that"))
    })?;
    fetch_there(client, place, &name, &keys, keys.is_empty()).await?;
    Ok(name.to_string())
}

fn take(context: &Context, path: &Path, trust: &Trust) -> Result<String, Error> {
    if !context.is_local()? {
        return Err(Error::bad_input("the daemon is on another host and sees no files of this one")
            .with_remedy("push the image to a registry or a web server, and run it from there"));
    }
    let keys = trust.keys_to_run()?;
    let name = name_of(path);
    let name: ImageName = name.parse().map_err(|_| {
        Error::bad_input(format!("no image can be called like {}", path.display()))
            .with_remedy("import it with `arnia image import FILE --name NAME`, and run that")
    })?;
    let store = Store::open(image_folder(&default_paths()?.1)).map_err(explain)?;
    let mut watch = Watch::new(false);
    if archive::is_archive(path) {
        let mut file = std::fs::File::open(path)
            .map_err(|e| Error::bad_input(format!("cannot open {}", path.display())).with_source(e))?;
        archive::import(&store, &mut file, &name, &keys, &mut watch).map_err(explain)?;
    } else {
        if !path.is_file() {
            let missing = format!("there is no file {}", path.display());
            return Err(Error::new(crate::ErrorKind::NotFound, missing));
        }
        if !keys.is_empty() {
            check_is_whole(path)?;
            image::Progress::begin(&mut watch, &format!("verifying {}", path.display()), None);
            sign::require_file(path, &keys).map_err(explain)?;
        }
        import(&store, path, &name, &ImportOptions::default(), &mut watch).map_err(|error| {
            let takes_more = error.kind() == ErrorKind::BadInput;
            let told = explain(error);
            match takes_more {
                true => told.with_remedy(
                    "import it with `arnia image import`, which takes more options, and run that",
                ),
                false => told,
            }
        })?;
    }
    Ok(name.to_string())
}

/// Refuses a description of disks that lie in other files: its signature says nothing about those.
fn check_is_whole(path: &Path) -> Result<(), Error> {
    if !path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("ovf")) {
        return Ok(());
    }
    Err(Error::bad_input(format!(
        "a signature of {} does not cover its disks, which are files beside it",
        path.display()
    ))
    .with_remedy("sign and run an archive of all of it (.ova), or take it as it is by --allow-unsigned"))
}

/// A file's name without its ending, of the letters that names of images have.
fn name_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let stem = stem.strip_suffix(".tar").unwrap_or(&stem);
    let letter = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    stem.chars().map(letter).collect::<String>().trim_start_matches(['.', '-']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_from_names_and_give_them() {
        for (text, file) in [
            ("debian:12", false),
            ("team/web", false),
            ("web.tar", false),
            ("./web", true),
            ("/srv/x.ova", true),
            ("../x", true),
        ] {
            assert_eq!(is_file(Path::new(text)), file, "{text}");
        }
        for (text, name) in [
            ("/srv/My Shop (2).ova", "my-shop--2-"),
            ("web.tar", "web"),
            ("root.tar.gz", "root"),
            (".x.tar", "x"),
        ] {
            assert_eq!(name_of(Path::new(text)), name, "{text}");
            name.parse::<ImageName>().unwrap();
        }
    }

    #[test]
    fn a_signature_has_to_cover_all_that_runs() {
        assert!(check_is_whole(Path::new("shop.OVF")).unwrap_err().report().contains("its disks"));
        check_is_whole(Path::new("shop.ova")).unwrap();
        check_is_whole(Path::new("disk.qcow2")).unwrap();
    }
}
