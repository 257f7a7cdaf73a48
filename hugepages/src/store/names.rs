//! Names of an image on the command line: its own name, the path of the model, or the name of the model.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Entries, Image, Store, StoreError};

/// All images of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Model {
    /// Directory of its files; empty if unknown.
    pub folder: PathBuf,
    /// Name of its files, without the ending and the numbers of shards.
    pub name: String,
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

/// `x-00002-of-00003.gguf` and `x.gguf` are `x`.
pub(super) fn stem(file: &str) -> &str {
    let stem = file.strip_suffix(".gguf").unwrap_or(file);
    let number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let shard = || {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, one) = rest.rsplit_once('-')?;
        (number(count) && number(one)).then_some(name)
    };
    shard().unwrap_or(stem)
}

/// All files of a model, from its first file.
pub(super) fn shards(first: &Path) -> Vec<PathBuf> {
    let of_name = || {
        let name = first.file_name()?.to_str()?;
        let (_, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let stem = stem(name);
        // Only for the first shard, because another shard's name means only this shard.
        (name == format!("{stem}-00001-of-{count}.gguf")).then_some(())?;
        let n: u32 = count.parse().ok()?;
        let shard = |i| first.with_file_name(format!("{stem}-{i:05}-of-{count}.gguf"));
        Some((1..=n).map(shard).collect())
    };
    of_name().unwrap_or_else(|| vec![first.to_owned()])
}

/// Directory and name of an image's model. Without a manifest, from the image's own name `MODEL.KIND-HASH.resident`.
fn model_of(image: &Image) -> (PathBuf, String) {
    let source = Path::new(&image.info.source);
    if let Some(name) = source.file_name() {
        let folder = source.parent().unwrap_or(Path::new(""));
        return (folder.to_owned(), stem(&name.to_string_lossy()).to_owned());
    }
    let before =
        |text: &'static str| move |name: &str| name.rsplit_once(text).map(|it| it.0.to_owned());
    let name = before("-")(&image.name).unwrap_or_else(|| image.name.clone());
    let name = before(".")(&name).unwrap_or(name);
    (PathBuf::new(), stem(&name).to_owned())
}

impl Entries {
    /// Images by model, in the order of the models' names.
    pub fn models(&self) -> Vec<Model> {
        let mut models: BTreeMap<(String, PathBuf), Vec<Image>> = BTreeMap::new();
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
    pub fn find(&self, store: &Store, wanted: &str) -> Result<Named, StoreError> {
        self.find_in(store.path(), wanted)
    }

    fn find_in(&self, store: &Path, wanted: &str) -> Result<Named, StoreError> {
        let mut named = Named {
            images: Vec::new(),
            files: Vec::new(),
        };
        if self.images.iter().any(|image| image.name == wanted) {
            named.images.push(wanted.to_owned());
            return Ok(named);
        }
        let models = self.models();
        let path = absolute(wanted);
        let is_path = |model: &&Model| model.images.iter().any(|image| of_path(image, &path));
        let mut found: Vec<&Model> = models.iter().filter(is_path).collect();
        let files = self.files.iter().map(|file| &file.name);
        let mut files: Vec<&String> = files.filter(|name| *name == wanted).collect();
        if found.is_empty() && files.is_empty() && !wanted.contains('/') {
            let name = stem(wanted);
            found = models.iter().filter(|model| model.name == name).collect();
            let all = self.files.iter().map(|file| &file.name);
            files = all.filter(|file| stem(file) == name).collect();
        }
        if found.len() > 1 {
            let paths = found.iter().map(|model| model.folder.join(&model.name));
            return Err(StoreError::Ambiguous {
                wanted: wanted.to_owned(),
                models: paths.map(|path| path.display().to_string()).collect(),
            });
        }
        if found.is_empty() && files.is_empty() {
            return Err(StoreError::NoSuchImage {
                store: store.to_owned(),
                wanted: wanted.to_owned(),
            });
        }
        let images = found.iter().flat_map(|model| &model.images);
        named.images = images.map(|image| image.name.clone()).collect();
        named.files = files.into_iter().cloned().collect();
        Ok(named)
    }
}

/// The path in the form of the manifest, even if the model no longer exists.
fn absolute(path: &str) -> PathBuf {
    fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path))
        .unwrap_or_else(|_| path.into())
}

fn of_path(image: &Image, path: &Path) -> bool {
    let source = Path::new(&image.info.source);
    !image.info.source.is_empty() && (source == path || absolute(&image.info.source) == path)
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
                source: source.to_owned(),
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
        let named = entries().find_in(Path::new("/store"), wanted).unwrap();
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
        let error = entries().find_in(Path::new("/store"), "b").unwrap_err();
        assert_eq!(error.to_string(), "ambiguous name `b`: `/m/b`, `/n/b`");
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        for wanted in ["x", "/x/b.gguf", "m/a", ""] {
            let error = entries().find_in(Path::new("/store"), wanted).unwrap_err();
            assert!(matches!(error, StoreError::NoSuchImage { .. }), "{wanted}");
        }
    }

    #[test]
    fn the_first_shard_brings_the_others_along() {
        let all = shards(Path::new("/m/x-00001-of-00003.gguf"));
        assert_eq!(all.len(), 3);
        assert_eq!(all[2], Path::new("/m/x-00003-of-00003.gguf"));
        for alone in ["/m/x.gguf", "/m/x-00002-of-00003.gguf", "/m/x-of-y.gguf"] {
            assert_eq!(shards(Path::new(alone)), [PathBuf::from(alone)]);
        }
    }
}
