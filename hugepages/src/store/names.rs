//! Names of an image on the command line: its own name, the path of the model, or the name of the model.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::engine::{content_of, lossy};
use super::{Entries, Image, Store, StoreError};

/// All images of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Model {
    /// Directory of its files; empty if unknown.
    #[serde(serialize_with = "lossy")]
    pub folder: PathBuf,
    /// Name of its files, without the ending and the numbers of shards.
    #[serde(serialize_with = "lossy")]
    pub name: OsString,
    /// In order of their names.
    pub images: Vec<Image>,
}

/// Names in a store that match a word of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Named {
    /// Names of images.
    pub images: Vec<String>,
    /// Names of plain files.
    pub files: Vec<String>,
}

/// Bytes of the part `-00002-of-00003`.
const SHARD: usize = 15;

/// Splits the name of a file of a model in shards: `x`, 2 and 3 for `x-00002-of-00003.gguf`.
fn shard(file: &OsStr) -> Option<(&OsStr, u32, u32)> {
    let stem = file.as_bytes().strip_suffix(b".gguf")?;
    let (name, part) = stem.split_at_checked(stem.len().checked_sub(SHARD)?)?;
    let (index, count) = str::from_utf8(part)
        .ok()?
        .strip_prefix('-')?
        .split_once("-of-")?;
    let number = |text: &str| {
        let is_number = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| text.parse().ok())?
    };
    Some((OsStr::from_bytes(name), number(index)?, number(count)?))
}

/// `x-00002-of-00003.gguf` and `x.gguf` are `x`.
pub(super) fn stem(file: &OsStr) -> &OsStr {
    let without_ending = || {
        file.as_bytes()
            .strip_suffix(b".gguf")
            .map(OsStr::from_bytes)
    };
    let of_shard = shard(file).map(|(name, ..)| name);
    of_shard.or_else(without_ending).unwrap_or(file)
}

/// All files of a model, from its first file.
pub fn shards(first: &Path) -> Vec<PathBuf> {
    // Another shard's name means only this shard.
    let Some((name, 1, count)) = first.file_name().and_then(shard) else {
        return vec![first.to_owned()];
    };
    let file = |index: u32| {
        let mut file = name.to_owned();
        file.push(format!("-{index:05}-of-{count:05}.gguf"));
        first.with_file_name(file)
    };
    (1..=count).map(file).collect()
}

/// Directory and name of an image's model. Without a manifest, from the image's own name `MODEL.KIND-HASH.resident`.
fn model_of(image: &Image) -> (PathBuf, OsString) {
    let source = &image.info.source;
    if let Some(name) = source.file_name() {
        let folder = source.parent().unwrap_or(Path::new(""));
        return (folder.to_owned(), stem(name).to_owned());
    }
    let before =
        |text: &'static str| move |name: &str| name.rsplit_once(text).map(|it| it.0.to_owned());
    let name = before("-")(&image.name).unwrap_or_else(|| image.name.clone());
    let name = before(".")(&name).unwrap_or(name);
    (PathBuf::new(), stem(name.as_ref()).to_owned())
}

impl Entries {
    /// Images by model, in the order of the models' names.
    pub fn models(&self) -> Vec<Model> {
        let mut models: BTreeMap<(OsString, PathBuf), Vec<Image>> = BTreeMap::new();
        for image in &self.images {
            let (folder, name) = model_of(image);
            let of_model = models.entry((name, folder)).or_default();
            of_model.push(image.clone());
        }
        let models = models.into_iter();
        models
            .map(|((name, folder), images)| Model {
                folder,
                name,
                images,
            })
            .collect()
    }

    /// Finds the images of a word: a name in the store, the path of a model, or the name of a model.
    ///
    /// # Errors
    /// [`StoreError::Ambiguous`] if several models have this name, [`StoreError::NoSuchImage`].
    pub fn find(&self, store: &Store, wanted: &OsStr) -> Result<Named, StoreError> {
        self.find_in(store.path(), wanted)
    }

    fn find_in(&self, store: &Path, wanted: &OsStr) -> Result<Named, StoreError> {
        let mut named = Named {
            images: Vec::new(),
            files: Vec::new(),
        };
        if let Some(image) = self.images.iter().find(|image| *image.name == *wanted) {
            named.images.push(image.name.clone());
            return Ok(named);
        }
        let models = self.models();
        // Shards may be links to files whose names have nothing in common, as in the cache of the Hugging Face hub.
        let paths: Vec<_> = shards(wanted.as_ref())
            .iter()
            .map(|path| absolute(path))
            .collect();
        let is_of = |image: &Image| paths.iter().any(|path| of_path(image, path));
        let is_path = |model: &&Model| model.images.iter().any(is_of);
        let mut found: Vec<&Model> = models.iter().filter(is_path).collect();
        if found.is_empty() {
            // Another name of the file may have made the images.
            let contents: Vec<_> = paths.iter().filter_map(|path| content_of(path)).collect();
            let is_of = |image: &Image| contents.iter().any(|content| of_content(image, content));
            let has_content = |model: &&Model| model.images.iter().any(is_of);
            found = models.iter().filter(has_content).collect();
        }
        if found.is_empty() && wanted.as_bytes().contains(&b'/') {
            // the model as `list` and the message for ambiguous names show it, without `.gguf`
            let path = absolute(wanted.as_ref());
            let is_shown = |model: &&Model| model.folder.join(&model.name) == path;
            found = models.iter().filter(is_shown).collect();
        }
        let by_path = !found.is_empty();
        let files = self.files.iter().map(|file| &file.name);
        let mut files: Vec<&String> = files.filter(|name| ***name == *wanted).collect();
        if found.is_empty() && files.is_empty() && !wanted.as_bytes().contains(&b'/') {
            let name = stem(wanted);
            found = models.iter().filter(|model| model.name == name).collect();
            let all = self.files.iter().map(|file| &file.name);
            files = all.filter(|file| stem(file.as_ref()) == name).collect();
        }
        if found.len() > 1 && !by_path {
            let paths = found.iter().map(|model| model.folder.join(&model.name));
            return Err(StoreError::Ambiguous {
                wanted: wanted.to_string_lossy().into_owned(),
                models: paths.map(|path| path.display().to_string()).collect(),
            });
        }
        if found.is_empty() && files.is_empty() {
            return Err(StoreError::NoSuchImage {
                store: store.to_owned(),
                wanted: wanted.to_string_lossy().into_owned(),
            });
        }
        let images = found.iter().flat_map(|model| &model.images);
        named.images = images.map(|image| image.name.clone()).collect();
        named.files = files.into_iter().cloned().collect();
        Ok(named)
    }
}

/// The path in the form of the manifest, even if the model no longer exists.
fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path))
        .unwrap_or_else(|_| path.into())
}

fn of_path(image: &Image, path: &Path) -> bool {
    let source = &image.info.source;
    !source.as_os_str().is_empty() && (source == path || absolute(source) == path)
}

fn of_content(image: &Image, content: &str) -> bool {
    let mut files = image.info.identity.lines();
    files.any(|line| line.starts_with(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Info, PlainFile};

    fn image(name: &str, source: &str) -> Image {
        Image {
            name: name.to_owned(),
            problem: None,
            bytes: 0,
            uid: 0,
            info: Info {
                source: source.into(),
                ..Info::default()
            },
            attached: Vec::new(),
        }
    }

    fn entries() -> Entries {
        let file = PlainFile {
            name: "c.gguf".to_owned(),
            bytes: 0,
            uid: 0,
            created: 0,
            attached: Vec::new(),
        };
        Entries {
            images: vec![
                image("a-1.resident", "/m/a-00001-of-00002.gguf"),
                image("a-2.resident", "/m/a-00002-of-00002.gguf"),
                image("b-1.resident", "/m/b.gguf"),
                image("b-2.resident", "/n/b.gguf"),
                image("broken.weights-3.resident", ""),
            ],
            files: vec![file],
            unfinished: 0,
            others: 0,
            unread: 0,
        }
    }

    fn found(wanted: &str) -> Vec<String> {
        let named = entries()
            .find_in(Path::new("/store"), wanted.as_ref())
            .unwrap();
        [named.images, named.files].concat()
    }

    #[test]
    fn a_model_brings_all_its_images_and_a_name_only_itself() {
        for wanted in ["/m/a-00001-of-00002.gguf", "a", "a.gguf"] {
            assert_eq!(found(wanted), ["a-1.resident", "a-2.resident"], "{wanted}");
        }
        assert_eq!(found("a-2.resident"), ["a-2.resident"]);
        assert_eq!(found("/n/b.gguf"), ["b-2.resident"]);
        assert_eq!(found("c.gguf"), ["c.gguf"]);
        assert_eq!(found("c"), ["c.gguf"]);
        assert_eq!(found("broken"), ["broken.weights-3.resident"]);
    }

    #[test]
    fn a_name_of_several_models_is_an_error_that_lists_them() {
        let error = entries()
            .find_in(Path::new("/store"), "b".as_ref())
            .unwrap_err();
        assert_eq!(error.to_string(), "ambiguous name `b`: `/m/b`, `/n/b`");
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        for wanted in ["x", "/x/b.gguf", "m/a", ""] {
            let error = entries()
                .find_in(Path::new("/store"), wanted.as_ref())
                .unwrap_err();
            assert!(matches!(error, StoreError::NoSuchImage { .. }), "{wanted}");
        }
    }

    #[test]
    fn the_first_shard_brings_the_others_along() {
        let all = shards(Path::new("/m/x-00001-of-00003.gguf"));
        assert_eq!(all.len(), 3);
        assert_eq!(all[2], Path::new("/m/x-00003-of-00003.gguf"));
        let latin1 = OsStr::from_bytes(b"/m/\xe9-00001-of-00002.gguf");
        let second = OsStr::from_bytes(b"/m/\xe9-00002-of-00002.gguf");
        assert_eq!(shards(Path::new(latin1))[1], Path::new(second));
        for alone in ["/m/x.gguf", "/m/x-00002-of-00003.gguf", "/m/x-of-y.gguf"] {
            assert_eq!(shards(Path::new(alone)), [PathBuf::from(alone)]);
        }
    }
}
