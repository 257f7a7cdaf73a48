//! The pin: fetch, verify and change it.

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use flate2::read::GzDecoder;

use crate::build::carrier::Carrier;
use crate::build::lock::{self, Lock, Registry};
use crate::build::patch::{Accepts, Series};
use crate::build::{source, tree};
use crate::git::Git;
use crate::hint::Hint as _;
use crate::patches::attempt::{Attempt, attempt_with};
use crate::repo::Repo;

/// The unpacked source in `vendor/cache/`, and whether this call downloaded it.
pub fn fetch(repo: &Repo) -> Result<(PathBuf, bool)> {
    let lock = repo.lock()?;
    let was_there = repo.cache().join(&lock.sha256).is_dir();
    Ok((source::fetch(&lock, &repo.cache())?, !was_there))
}

/// Result of `verify`.
#[derive(Debug, Default)]
pub struct Verified {
    pub good: Vec<String>,
    pub bad: Vec<String>,
}

/// Downloads the pinned archive again, and compares the cache and the upstream commit with it.
pub fn verify(repo: &Repo) -> Result<Verified> {
    let lock = repo.lock()?;
    let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
    let archive = lock.carrier().download(scratch.path())?;
    let pristine = scratch.path().join("pristine");
    source::install(&lock, &archive, scratch.path(), &pristine)?;
    let mut verified = Verified::default();
    verified.good.push(format!(
        "{} {}: sha256 of the archive matches the lock",
        lock.package, lock.version
    ));

    let cached = repo.cache().join(&lock.sha256);
    if cached.is_dir() {
        let (wanted, found) = (tree::files(&pristine)?, tree::files(&cached)?);
        let differs = |path: &&PathBuf| {
            fs::read(pristine.join(path)).ok() != fs::read(cached.join(path)).ok()
        };
        let different: Vec<_> = wanted.union(&found).filter(differs).collect();
        verified.bad.extend(
            different
                .iter()
                .map(|path| format!("{}: differs from the archive", cached.join(path).display())),
        );
        if different.is_empty() {
            verified.good.push(format!(
                "{}: {} files match the archive",
                cached.display(),
                wanted.len()
            ));
        }
    }
    match Told::read(&archive, &lock.subdir)? {
        Some(told) => match told.proves(&lock.commit, &pristine)? {
            Ok(tree) => verified.good.push(format!(
                "upstream commit {}: its tree {tree} matches the archive",
                lock.commit
            )),
            Err(why) => verified.bad.push(why),
        },
        None => verified.good.push(format!(
            "upstream commit {}: not verified, because the carrier does not contain it",
            lock.commit
        )),
    }
    Ok(verified)
}

/// Result of a change of the pin.
pub struct Bumped {
    pub before: Lock,
    pub after: Lock,
    pub warnings: Vec<String>,
    pub attempt: Attempt,
    /// The blob ids changed, so the build refuses the series.
    pub is_stale: bool,
}

/// Pins `version` of a carrier, then tries the series on it. By default the carrier stays the same.
pub fn bump(
    repo: &Repo,
    registry: Option<Registry>,
    package: Option<&str>,
    version: &str,
    commit: Option<&str>,
) -> Result<Bumped> {
    let before = repo.lock()?;
    let mut warnings = Vec::new();
    let mut older = Vec::new();
    match source::fetch(&before, &repo.cache()) {
        Ok(dir) => older.push(dir),
        Err(why) => warnings.push(format!(
            "cannot merge patches, because the current source is unavailable: {why:#}"
        )),
    }

    fs::create_dir_all(repo.cache())
        .with_context(|| format!("cannot write `{}`", repo.cache().display()))?;
    let scratch = tempfile::Builder::new()
        .prefix(".bump-")
        .tempdir_in(repo.cache())?;
    let carrier = Carrier {
        registry: registry.unwrap_or(before.registry),
        package: package.unwrap_or(&before.package),
        version,
        sha256: None,
    };
    let archive = carrier.download(scratch.path())?;
    let subdir = source::subdir(&archive)?;
    let told = Told::read(&archive, &subdir)?;
    let (commit, date) = commit_and_date(told.as_ref(), commit, carrier.package, version)?;
    let after = Lock {
        registry: carrier.registry,
        package: carrier.package.to_owned(),
        version: version.to_owned(),
        sha256: source::sha256(&archive)?,
        subdir,
        commit,
        date,
    };
    let pristine = repo.cache().join(&after.sha256);
    if !pristine.is_dir() {
        source::install(&after, &archive, scratch.path(), &pristine)?;
    }
    match told {
        Some(told) => {
            if let Err(why) = told.proves(&after.commit, &pristine)? {
                warnings.push(why);
            }
        }
        None => warnings.push(
            "--commit is used without verification: the carrier does not contain the upstream commit".to_owned(),
        ),
    }

    write_lock(&repo.lock_file(), &after)?;
    let attempt = attempt_with(repo, &pristine, older)?;
    let is_stale = !attempt.is_empty()
        && Series::read(repo.patches().root())?
            .overlay(&pristine, &Accepts::Pin)
            .is_err();
    Ok(Bumped {
        before,
        after,
        warnings,
        attempt,
        is_stale,
    })
}

fn commit_and_date(
    told: Option<&Told>,
    given: Option<&str>,
    package: &str,
    version: &str,
) -> Result<(String, String)> {
    match (told, given) {
        (Some(told), Some(given)) if told.commit != given => Err(anyhow!(
            "{package} {version} contains upstream commit {}, not {given}",
            told.commit
        ))
        .hint("run the command without --commit"),
        (Some(told), _) => Ok((told.commit.clone(), told.date()?)),
        (None, Some(given)) => Ok((given.to_owned(), "unknown".to_owned())),
        (None, None) => Err(anyhow!(
            "{package} {version} does not name its upstream commit"
        ))
        .hint("find the commit in its change log, and pass it with --commit SHA"),
    }
}

/// Changes the values in the lock file and nothing else: comments and order stay.
fn write_lock(path: &Path, lock: &Lock) -> Result<()> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let subdir = lock.subdir.to_str().context("a path is not UTF-8")?;
    let values = [
        ("registry", lock.registry.name()),
        ("package", &lock.package),
        ("version", &lock.version),
        ("sha256", &lock.sha256),
        ("subdir", subdir),
        ("commit", &lock.commit),
        ("date", &lock.date),
    ];
    let mut new = String::new();
    for line in text.lines() {
        let key = line.split('=').next().unwrap_or_default().trim();
        match values.iter().find(|(name, _)| *name == key) {
            Some((name, value)) => new.extend([name, " = \"", value, "\"\n"]),
            None => new.extend([line, "\n"]),
        }
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    let draft = tempfile::NamedTempFile::new_in(dir)?;
    fs::write(draft.path(), &new)?;
    let read_back = lock::read(draft.path())?;
    ensure!(
        read_back == *lock,
        "`{}` needs exactly one line for each value",
        path.display()
    );
    if new != text {
        fs::write(path, new).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}

/// Upstream's git objects in the carrier's archive, with the commit.
struct Told {
    commit: String,
    git: Git,
    _scratch: tempfile::TempDir,
}

impl Told {
    /// Takes only HEAD and the objects, because a download must not add configuration or hooks.
    fn read(archive: &Path, subdir: &Path) -> Result<Option<Self>> {
        let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
        let git = Git::init(scratch.path())?;
        let dot_git = git.dir().join(".git");
        let module = Path::new(".git/modules").join(subdir);
        let mut head = None;
        for entry in tar::Archive::new(GzDecoder::new(File::open(archive)?)).entries()? {
            let mut entry = entry?;
            let below_top: PathBuf = entry.path()?.components().skip(1).collect();
            let Ok(inner) = below_top.strip_prefix(&module) else {
                continue;
            };
            if inner == Path::new("HEAD") {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut entry, &mut text)?;
                head = Some(text.trim().to_owned());
            } else if inner.starts_with("objects") && entry.header().entry_type().is_file() {
                let is_inside = inner
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)));
                ensure!(is_inside, "`{}` is outside of the archive", inner.display());
                let target = dot_git.join(inner);
                fs::create_dir_all(target.parent().unwrap_or(&dot_git))?;
                entry.unpack(&target)?;
            }
        }
        let Some(commit) = head.filter(|id| id.len() == 40) else {
            return Ok(None);
        };
        // The carrier's clone has no history, so git would miss the parent.
        fs::write(dot_git.join("shallow"), format!("{commit}\n"))?;
        if git.resolve(&commit)?.is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            commit,
            git,
            _scratch: scratch,
        }))
    }

    fn date(&self) -> Result<String> {
        self.git.text([
            "show",
            "--no-patch",
            "--date=format-local:%Y-%m-%d",
            "--format=%cd",
            &self.commit,
        ])
    }

    /// Verifies with git's hashes that `pristine` is the tree of `commit`. If not, returns the reason.
    fn proves(&self, commit: &str, pristine: &Path) -> Result<std::result::Result<String, String>> {
        if self.commit != commit {
            return Ok(Err(format!(
                "the lock names upstream commit {commit}, the archive contains {}",
                self.commit
            )));
        }
        let object = self.git.bytes(["cat-file", "commit", commit])?;
        // Git does not verify the hash of objects in a pack.
        if self
            .git
            .feed(["hash-object", "-t", "commit", "--stdin"], &object)?
            != commit
        {
            return Ok(Err(format!(
                "hash mismatch of commit {commit} in the archive"
            )));
        }
        let wanted = self
            .git
            .text(["rev-parse", &format!("{commit}^{{tree}}")])?;
        let ours = self.git.commit_of_folder(pristine, "the unpacked source")?;
        let found = self.git.text(["rev-parse", &format!("{ours}^{{tree}}")])?;
        if wanted == found {
            Ok(Ok(found))
        } else {
            Ok(Err(format!(
                "tree mismatch: the archive contains {found}, upstream commit {commit} has {wanted}"
            )))
        }
    }
}
