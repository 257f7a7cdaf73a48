//! Finds images of a store that can be removed.

use std::time::Duration;

use serde::Serialize;

use super::{Image, Store, StoreError};

/// Rules for removable images. Without a rule: images that no process can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// Only images whose model file changed or was removed.
    pub stale: bool,
    /// Images that no process used for this time.
    pub older_than: Option<Duration>,
    /// Then the longest unused images, until this many pages are free.
    pub need: Option<u64>,
}

/// A removable image or file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Garbage {
    /// Its name in the store.
    pub name: String,
    /// Why it is removable.
    pub why: String,
    /// Bytes of huge pages that return to the pool.
    pub bytes: u64,
}

impl Store {
    /// Removable images and files by these rules, in the order of removal. `now` is in seconds since 1970.
    ///
    /// The list has no image in use, no image that only another user trusts, and no file of another program.
    ///
    /// # Errors
    /// [`StoreError::StillShort`] if the removable images are too few for [`Rules::need`], [`StoreError::Io`]
    pub fn garbage(&self, rules: &Rules, now: i64) -> Result<Vec<Garbage>, StoreError> {
        let entries = self.entries()?;
        let mut garbage = Vec::new();
        if rules.is_default() || rules.need.is_some() {
            for name in self.abandoned()? {
                garbage.push(Garbage {
                    bytes: self.bytes_of(&name),
                    name,
                    why: "left by a killed copy".to_owned(),
                });
            }
        }
        let own = rustix::process::geteuid().as_raw();
        let free = self.free_pages();
        let (chosen, freed) = choose(
            &entries.images,
            rules,
            now,
            own,
            free.saturating_mul(self.page_size().bytes()) + sum(&garbage),
            self.page_size().bytes(),
        );
        garbage.extend(chosen);
        match rules.need {
            Some(wanted) if freed / self.page_size().bytes() < wanted => {
                Err(StoreError::StillShort {
                    size: self.page_size(),
                    wanted,
                    free,
                })
            }
            _ => Ok(garbage),
        }
    }

    /// Removes a removable image or file. `false` if a process uses it now.
    ///
    /// # Errors
    /// [`StoreError::Drop`], [`StoreError::Io`]
    pub fn collect(&self, garbage: &Garbage) -> Result<bool, StoreError> {
        if super::image::is_unfinished_name(garbage.name.as_ref()) {
            return self.remove_abandoned(&garbage.name).map(|()| true);
        }
        match self.drop(&garbage.name, false) {
            Ok(()) => Ok(true),
            Err(StoreError::InUse { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn bytes_of(&self, name: &str) -> u64 {
        use rustix::fs::{AtFlags, statat};

        let data = statat(self.fd(), name, AtFlags::SYMLINK_NOFOLLOW);
        data.map_or(0, |data| u64::try_from(data.st_blocks).unwrap_or(0) * 512)
    }
}

impl Rules {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn sum(garbage: &[Garbage]) -> u64 {
    garbage.iter().map(|it| it.bytes).sum()
}

/// Why no process can use an image.
fn useless(image: &Image, own: u32, page: u64) -> Option<String> {
    match &image.problem {
        // Its owner may trust the image, so this user does not remove it.
        Some(_) if image.uid != own => None,
        Some(reason) => Some(format!("untrusted: {reason}")),
        None if image.info.is_stale => Some("its model file changed or was removed".to_owned()),
        None if image.info.complete == 0 => Some("no segment is complete".to_owned()),
        None if has_lost_pages(image, page) => {
            Some("the process that filled it was killed".to_owned())
        }
        None => None,
    }
}

/// Whether the image holds more pages than its complete segments need. Unneeded segments take no page and never become complete.
fn has_lost_pages(image: &Image, page: u64) -> bool {
    // The maximum: 8 bytes for each segment and a header, and both may start in the middle of a page.
    let manifest = (image.info.segments * 8 + 2 * 4096).div_ceil(page) + 1;
    image.bytes / page > image.info.complete.saturating_add(manifest)
}

/// Chooses the removable images. Also returns the number of free bytes after their removal.
fn choose(
    images: &[Image],
    rules: &Rules,
    now: i64,
    own: u32,
    mut free: u64,
    page: u64,
) -> (Vec<Garbage>, u64) {
    let mut chosen: Vec<Garbage> = Vec::new();
    let mut take = |image: &Image, why: String, free: &mut u64| {
        if chosen.iter().any(|it| it.name == image.name) {
            return;
        }
        *free += image.bytes;
        chosen.push(Garbage {
            name: image.name.clone(),
            why,
            bytes: image.bytes,
        });
    };
    let idle: Vec<&Image> = images.iter().filter(|image| !image.is_busy()).collect();
    for image in &idle {
        let is_stale = image.problem.is_none() && image.info.is_stale;
        let unused = u64::try_from(now.saturating_sub(image.info.used)).unwrap_or(0);
        let is_old = |limit: Duration| image.problem.is_none() && unused > limit.as_secs();
        if rules.older_than.is_some_and(is_old) {
            take(image, format!("unused for {}", span(unused)), &mut free);
        }
        let useless = useless(image, own, page);
        if let Some(why) = useless
            && (rules.is_default() || rules.need.is_some() || (rules.stale && is_stale))
        {
            take(image, why, &mut free);
        }
    }
    if let Some(pages) = rules.need {
        let mut oldest: Vec<_> = idle
            .iter()
            .filter(|image| image.problem.is_none())
            .collect();
        oldest.sort_by_key(|image| (image.info.used, &image.name));
        for image in oldest {
            if free / page >= pages {
                break;
            }
            take(image, "longest unused".to_owned(), &mut free);
        }
    }
    (chosen, free)
}

/// `3 d`, `2 h`, `5 min`, `12 s`: the largest unit that gives at least 1.
pub fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min")];
    let unit = units.iter().find(|(scale, _)| seconds >= *scale);
    let (scale, name) = unit.unwrap_or(&(1, "s"));
    format!("{} {name}", seconds / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Info, Reason};

    const PAGE: u64 = 2 << 20;

    fn image(name: &str, used: i64) -> Image {
        Image {
            name: name.to_owned(),
            problem: None,
            bytes: PAGE,
            uid: 7,
            info: Info {
                segments: 4,
                complete: 4,
                used,
                ..Info::default()
            },
            attached: Vec::new(),
        }
    }

    fn names(images: &[Image], rules: &Rules) -> Vec<String> {
        let (chosen, _) = choose(images, rules, 1000, 7, 0, PAGE);
        chosen.into_iter().map(|it| it.name).collect()
    }

    fn some() -> Vec<Image> {
        let mut images: Vec<_> = ["good", "stale", "empty", "bad", "theirs", "busy"]
            .into_iter()
            .zip(1..)
            .map(|(name, used)| image(name, used))
            .collect();
        images[1].info.is_stale = true;
        images[2].info.complete = 0;
        for bad in [3, 4] {
            images[bad].problem = Some(Reason::default());
        }
        images[4].uid = 8;
        images[5].info.is_stale = true;
        images[5].info.is_attached = true;
        images
    }

    #[test]
    fn what_nobody_can_use_goes_and_what_somebody_uses_stays() {
        let all = some();
        assert_eq!(names(&all, &Rules::default()), ["stale", "empty", "bad"]);
        let stale = Rules {
            stale: true,
            ..Rules::default()
        };
        assert_eq!(names(&all, &stale), ["stale"]);
    }

    #[test]
    fn pages_that_nothing_was_completed_of_are_found() {
        let mut images = [image("partial", 1), image("killed", 2)];
        for image in &mut images {
            image.info.segments = 1000;
            image.info.complete = 10;
        }
        images[0].bytes = 11 * PAGE;
        images[1].bytes = 17 * PAGE;
        assert_eq!(names(&images, &Rules::default()), ["killed"]);
    }

    #[test]
    fn age_counts_from_the_last_use() {
        let rules = Rules {
            older_than: Some(Duration::from_secs(100)),
            ..Rules::default()
        };
        assert_eq!(
            names(&[image("old", 899), image("new", 901)], &rules),
            ["old"]
        );
    }

    #[test]
    fn a_need_takes_what_was_not_used_for_longest_and_no_more() {
        let rules = |pages| Rules {
            need: Some(pages),
            ..Rules::default()
        };
        let images = [image("b", 20), image("c", 30), image("a", 10)];
        assert_eq!(names(&images, &rules(2)), ["a", "b"]);
        assert_eq!(names(&images, &rules(0)), [""; 0]);
        let (_, free) = choose(&images, &rules(9), 1000, 7, 0, PAGE);
        assert_eq!(free / PAGE, 3);
    }

    #[test]
    fn a_span_is_told_in_its_largest_unit() {
        let told: Vec<_> = [0, 59, 60, 7199, 7200, 90_000].map(span).to_vec();
        assert_eq!(told, ["0 s", "59 s", "1 min", "1 h", "2 h", "1 d"]);
    }
}
