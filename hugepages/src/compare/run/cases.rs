//! The table of cases: the programs to start, and the state of the page cache at the start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Cache, Case, Program, Resume, Side};
use crate::kernel::HugePageSize;
use crate::plan::PlanError;
use crate::serve::{ON, Options, POLICY, PRELOAD, PRELOAD_MIN, Preloaded, pages_of_program};

/// One of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The baseline.
    Baseline,
    /// Ours.
    Ours,
}

/// Huge pages that a server needs at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// No pages.
    None,
    /// All pages of its plan.
    All,
    /// Exactly half of the pages of its plan.
    Half,
    /// Enough for a baseline whose malloc takes pages: those of the other side, and an eighth for what malloc rounds up.
    ForMalloc,
    /// Enough for a program under the preload library.
    ForPreload,
}

/// How a server is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Name in the report.
    pub name: &'static str,
    /// The server.
    pub program: Which,
    /// Additional arguments.
    pub args: &'static [&'static str],
    /// Pages of the pool.
    pub pages: Pages,
    /// An option that its `--help` must list.
    pub option: Option<&'static str>,
    /// A variable of its environment.
    pub variable: Option<(&'static str, &'static str)>,
}

const fn recipe(name: &'static str, program: Which, args: &'static [&'static str]) -> Recipe {
    Recipe {
        name,
        program,
        args,
        pages: Pages::None,
        option: None,
        variable: None,
    }
}

const fn huge(name: &'static str, args: &'static [&'static str]) -> Recipe {
    Recipe {
        pages: Pages::All,
        option: Some("--hugepages"),
        ..recipe(name, Which::Ours, args)
    }
}

const STOCK: Recipe = recipe("stock", Which::Baseline, &[]);
const STOCK_AGAIN: Recipe = recipe("stock again", Which::Baseline, &[]);
const STOCK_NONE: Recipe = Recipe {
    option: Some("--load-mode"),
    ..recipe("stock, none", Which::Baseline, &["--load-mode", "none"])
};
const STOCK_LEAN: Recipe = Recipe {
    option: Some("--no-warmup"),
    ..recipe("stock, no warm-up", Which::Baseline, &["--no-warmup"])
};
const STOCK_DIO: Recipe = Recipe {
    option: Some("--load-mode"),
    ..recipe("stock, dio", Which::Baseline, &["--load-mode", "dio"])
};
/// glibc puts what malloc allocates on huge pages of the default size.
const STOCK_MALLOC: Recipe = Recipe {
    name: "stock, huge malloc",
    pages: Pages::ForMalloc,
    variable: Some(("GLIBC_TUNABLES", "glibc.malloc.hugetlb=2")),
    ..STOCK_NONE
};
/// `hugepages exec` runs programs in this way.
const STOCK_PRELOADED: Recipe = Recipe {
    pages: Pages::ForPreload,
    ..recipe("stock, preload", Which::Baseline, &[])
};
/// No llama.cpp has this option yet. The comparison skips the case with this reason, and runs it as soon as the option exists.
const STOCK_ADVISED: Recipe = Recipe {
    option: Some("--thp"),
    ..recipe("stock, THP advice", Which::Baseline, &["--thp"])
};
const OFF: Recipe = recipe("off", Which::Ours, &[]);
const HUGE: Recipe = huge(
    "hugepages",
    &["--hugepages", "--hugepage-policy", "require"],
);
const ONE_FILE: Recipe = Recipe {
    name: "one file",
    ..HUGE
};
const SHARDS: Recipe = Recipe {
    name: "shards",
    ..HUGE
};
const REPACK: Recipe = Recipe {
    name: "repacked",
    ..HUGE
};
const NO_REPACK: Recipe = huge(
    "no repack",
    &["--hugepages", "--hugepage-policy", "require", "--no-repack"],
);
const SIZE_2M: Recipe = huge(
    "2M",
    &[
        "--hugepages",
        "--hugepage-policy",
        "require",
        "--hugepage-size",
        "2M",
    ],
);
const SIZE_1G: Recipe = huge(
    "1G",
    &[
        "--hugepages",
        "--hugepage-policy",
        "require",
        "--hugepage-size",
        "1G",
    ],
);
const THP: Recipe = Recipe {
    pages: Pages::None,
    ..huge("thp", &["--hugepages", "--hugepage-size", "thp"])
};
const HALF: Recipe = Recipe {
    pages: Pages::Half,
    ..huge(
        "prefer, half",
        &["--hugepages", "--hugepage-policy", "prefer"],
    )
};
const STORE: Recipe = Recipe {
    option: Some(STORE_DIR),
    ..huge(
        "store",
        &["--hugepages", "--hugepage-policy", "require", STORE_DIR],
    )
};

/// Last arguments that need a directory.
const STORE_DIR: &str = "--hugepage-store";
const SLOT_DIR: &str = "--slot-save-path";

/// One slot has the whole context.
const STOCK_IN_CONVERSATION: Recipe = recipe("stock", Which::Baseline, &["--parallel", "1"]);
const KEPT_CONTEXT: Recipe = Recipe {
    option: Some("--hugepage-keep-context"),
    ..huge(
        "kept context",
        &[
            "--hugepages",
            "--hugepage-policy",
            "require",
            "--parallel",
            "1",
            "--hugepage-keep-context",
            STORE_DIR,
        ],
    )
};

/// The sides of the cases `restart` and `sleep`.
pub const RESTART: [(Resume, Recipe); 3] = [
    (Resume::Compute, STOCK_IN_CONVERSATION),
    (
        Resume::Restore,
        Recipe {
            option: Some(SLOT_DIR),
            ..recipe(
                "stock, slot restore",
                Which::Baseline,
                &["--parallel", "1", SLOT_DIR],
            )
        },
    ),
    (Resume::Keep, KEPT_CONTEXT),
];

/// The sides of the case `switch`, which are routers.
pub const SWITCH: [Recipe; 2] = [
    Recipe {
        option: Some("--models-max"),
        ..STOCK_IN_CONVERSATION
    },
    KEPT_CONTEXT,
];

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Name in `--cases`.
    pub name: &'static str,
    /// The baseline.
    pub a: Recipe,
    /// The side that is compared with the baseline.
    pub b: Recipe,
    /// State of the page cache at the start of each run.
    pub cache: Cache,
    /// Text in `--help`.
    pub about: &'static str,
}

const fn row(name: &'static str, cache: Cache, a: Recipe, b: Recipe, about: &'static str) -> Row {
    Row {
        name,
        a,
        b,
        cache,
        about,
    }
}

use Cache::{Cold, Warm};

/// All cases.
#[rustfmt::skip]
pub const CASES: [Row; 29] = [
    row("cold",        Cold, STOCK,    HUGE,          "stock, huge pages of any size"),
    row("warm",        Warm, STOCK,    HUGE,          "the same"),
    row("off",         Warm, STOCK,    OFF,           "stock, this llama-server without --hugepages"),
    row("same",        Warm, STOCK,    STOCK_AGAIN,   "stock, stock: shows the noise"),
    row("shards",      Warm, ONE_FILE, SHARDS,        "one file, shards: both on huge pages"),
    row("repack-cold", Cold, NO_REPACK, REPACK,       "weights as in the file, repacked: both on huge pages"),
    row("repack",      Warm, NO_REPACK, REPACK,       "the same"),
    row("2m-cold",     Cold, STOCK,    SIZE_2M,       "stock, pages of 2 MiB only"),
    row("2m",          Warm, STOCK,    SIZE_2M,       "the same"),
    row("1g-cold",     Cold, STOCK,    SIZE_1G,       "stock, pages of 1 GiB only"),
    row("1g",          Warm, STOCK,    SIZE_1G,       "the same"),
    row("thp-cold",    Cold, STOCK,    THP,           "stock, anonymous memory on THP"),
    row("thp",         Warm, STOCK,    THP,           "the same"),
    row("half-cold",   Cold, STOCK,    HALF,          "stock, `prefer` with half of the pages"),
    row("half",        Warm, STOCK,    HALF,          "the same"),
    row("store-cold",  Cold, STOCK,    STORE,         "stock, a resident image"),
    row("store",       Warm, STOCK,    STORE,         "the same"),
    row("lean-cold",   Cold, STOCK_LEAN, HUGE,  "stock without its warm-up run, huge pages"),
    row("lean",        Warm, STOCK_LEAN, HUGE,  "the same"),
    row("lean-store",  Warm, STOCK_LEAN, STORE, "stock without its warm-up run, a resident image"),
    row("none-cold",   Cold, STOCK,    STOCK_NONE,    "stock, stock without mmap"),
    row("none",        Warm, STOCK,    STOCK_NONE,    "the same"),
    row("dio-cold",    Cold, STOCK,    STOCK_DIO,     "stock, stock with direct I/O"),
    row("dio",         Warm, STOCK,    STOCK_DIO,     "the same"),
    row("malloc-cold", Cold, STOCK_MALLOC, SIZE_2M,   "stock without mmap and with malloc on huge pages (glibc.malloc.hugetlb=2), pages of 2 MiB"),
    row("malloc",      Warm, STOCK_MALLOC, SIZE_2M,   "the same"),
    row("preload-cold", Cold, STOCK,   STOCK_PRELOADED, "stock, stock under the preload library, as in `hugepages exec`"),
    row("preload",     Warm, STOCK,    STOCK_PRELOADED, "the same"),
    row("advice",      Warm, STOCK,    STOCK_ADVISED, "stock, stock with THP advice on its mapping"),
];

/// Programs and arguments for the recipes.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The baseline.
    pub baseline: Program,
    /// This project's server.
    pub ours: Program,
    /// First shard, for the case `shards`.
    pub shards: Option<PathBuf>,
    /// Directory for resident images.
    pub store: String,
    /// Directory for saved slots, for the cases `restart` and `sleep`.
    pub slots: String,
    /// The preload library, for the cases `preload`.
    pub preload: PathBuf,
    /// Arguments of all servers.
    pub args: Vec<String>,
}

impl Programs {
    /// The program of a recipe.
    pub fn program(&self, which: Which) -> &Program {
        match which {
            Which::Baseline => &self.baseline,
            Which::Ours => &self.ours,
        }
    }

    /// The side of a recipe.
    pub fn side(&self, recipe: &Recipe, model: &Path) -> Side {
        let model = match &self.shards {
            Some(shards) if recipe.name == SHARDS.name => shards,
            _ => model,
        };
        // Slots for parallel requests, with room for their prompts.
        let fixed = ["--parallel", "4", "--ctx-size", "4096", "--no-webui"];
        let args = fixed.iter().chain(recipe.args);
        let mut args: Vec<String> = args.map(|arg| (*arg).to_owned()).collect();
        args.extend(match recipe.args.last() {
            Some(&STORE_DIR) => Some(self.store.clone()),
            Some(&SLOT_DIR) => Some(self.slots.clone()),
            _ => None,
        });
        args.extend(self.args.iter().cloned());
        Side {
            name: recipe.name.to_owned(),
            program: self.program(recipe.program).path.clone(),
            model: model.to_owned(),
            args,
            environment: self.environment(recipe),
        }
    }

    fn environment(&self, recipe: &Recipe) -> BTreeMap<String, String> {
        let library = self.preload.to_string_lossy();
        let preload = [
            (PRELOAD, &*library),
            (ON, "1"),
            (POLICY, "require"),
            // The user chose the model, so its size does not matter.
            (PRELOAD_MIN, "1M"),
        ];
        let preload = preload
            .into_iter()
            .filter(|_| recipe.pages == Pages::ForPreload);
        let variables = recipe.variable.into_iter().chain(preload);
        variables
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// Why a recipe cannot run: its program lacks the option.
    pub fn missing(&self, recipe: &Recipe) -> Option<String> {
        lacking(self.program(recipe.program), recipe.option?)
    }

    /// Which program lacks an option that both sides of a case need.
    pub fn lacks(&self, option: &str) -> Option<String> {
        let mut programs = [&self.baseline, &self.ours].into_iter();
        programs.find_map(|program| lacking(program, option))
    }

    /// Why the baseline cannot run under the preload library.
    fn preload_problem(&self) -> Option<String> {
        let words = [self.baseline.path.clone().into_os_string()];
        let error = Preloaded::new(&words, self.preload.clone(), Options::default()).err()?;
        Some(error.to_string())
    }
}

fn lacking(program: &Program, option: &str) -> Option<String> {
    let reason = || format!("`{}` has no option `{option}`", program.path.display());
    (!program.has(option)).then(reason)
}

impl Row {
    /// The case with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        CASES.iter().find(|row| row.name == name)
    }

    /// Why the case cannot run with these programs.
    pub fn missing(&self, programs: &Programs) -> Option<String> {
        if self.b == SHARDS && programs.shards.is_none() {
            return Some("--shards FILE is missing".to_owned());
        }
        if self.b.pages == Pages::ForPreload
            && let Some(reason) = programs.preload_problem()
        {
            return Some(reason);
        }
        let mut recipes = [self.a, self.b].into_iter();
        recipes.find_map(|recipe| programs.missing(&recipe))
    }

    /// Whether the case needs a store.
    pub fn uses_store(&self) -> bool {
        self.b.option == STORE.option
    }

    /// The case for a model, without its number of pages.
    pub fn case(&self, programs: &Programs, name: &str, model: &Path) -> Case {
        Case {
            name: self.name.to_owned(),
            model: name.to_owned(),
            cache: self.cache,
            a: programs.side(&self.a, model),
            b: programs.side(&self.b, model),
            direct_read: self.cache == Cold && self.b.pages == Pages::All && !self.uses_store(),
            planned_bytes: 0,
            planned_ordinary_bytes: 0,
            is_equal: self.a != NO_REPACK,
        }
    }

    /// Pages of each size that the case needs, from the server's plan. Sets the planned bytes of the case.
    ///
    /// # Errors
    /// [`PlanError`]
    pub fn pages(
        &self,
        programs: &Programs,
        case: &mut Case,
    ) -> Result<BTreeMap<HugePageSize, u64>, PlanError> {
        let mut pages = BTreeMap::new();
        for (recipe, side) in [(self.a, &case.a), (self.b, &case.b)] {
            let plan = match recipe.pages {
                Pages::None => continue,
                Pages::ForMalloc => case.b.plan()?,
                Pages::ForPreload => programs.side(&HUGE, &side.model).plan()?,
                Pages::All | Pages::Half => side.plan()?,
            };
            let ordinary = plan.needs.iter().filter(|need| need.page_size == 0);
            case.planned_ordinary_bytes = ordinary.map(|need| need.bytes).sum();
            case.planned_bytes = 0;
            let planned = match recipe.pages {
                Pages::ForPreload => pages_of_program(&plan),
                _ => plan.pages(),
            };
            for (size, count) in planned {
                let count = match recipe.pages {
                    Pages::Half => count / 2,
                    Pages::ForMalloc => count + count.div_ceil(8),
                    _ => count,
                };
                case.planned_bytes += size.bytes() * count;
                let most = pages.entry(size).or_insert(0);
                *most = count.max(*most);
            }
        }
        Ok(pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::run::SLEEP;

    fn programs(help: &str) -> Programs {
        let program = Program {
            path: "server".into(),
            help: help.into(),
            version: String::new(),
            sha256: String::new(),
        };
        Programs {
            baseline: program.clone(),
            ours: program,
            shards: None,
            store: "auto".into(),
            slots: "saved".into(),
            preload: "library.so".into(),
            args: vec!["--threads".into(), "2".into()],
        }
    }

    #[test]
    fn a_name_is_a_case_and_no_two_have_the_same() {
        for row in &CASES {
            assert_eq!(Row::named(row.name), Some(row));
        }
        assert_eq!(Row::named("nope"), None);
    }

    #[test]
    fn what_a_server_has_no_option_for_is_left_out_with_the_option() {
        let programs = programs("--hugepages --hugepage-size --load-mode");
        let missing = |name| Row::named(name).unwrap().missing(&programs);
        assert_eq!(missing("cold"), None);
        assert_eq!(missing("dio"), None);
        assert!(missing("store").unwrap().contains("`--hugepage-store`"));
        assert!(missing("advice").unwrap().contains("`--thp`"));
        assert!(missing("shards").unwrap().contains("--shards FILE"));
    }

    #[test]
    fn only_the_cases_with_the_preload_library_set_its_variables() {
        for row in &CASES {
            let case = row.case(&programs(""), "m", Path::new("m.gguf"));
            let is_preloaded = |side: &Side| side.environment.contains_key(PRELOAD);
            assert!(!is_preloaded(&case.a), "{}", row.name);
            assert_eq!(is_preloaded(&case.b), row.name.starts_with("preload"));
        }
    }

    #[test]
    fn a_missing_library_is_the_reason_to_skip_its_cases() {
        let mut programs = programs("");
        programs.baseline.path = std::env::current_exe().unwrap();
        let missing = |name| Row::named(name).unwrap().missing(&programs);
        let reason = missing("preload").unwrap();
        assert!(reason.contains("`library.so` is missing"), "{reason}");
        assert_eq!(missing("same"), None);
    }

    #[test]
    fn each_side_of_a_restart_gets_its_directory() {
        let programs = programs("--slot-save-path");
        let [computes, restores, keeps] =
            RESTART.map(|(_, recipe)| programs.side(&recipe, Path::new("m.gguf")).args);
        assert!(!computes.contains(&"saved".into()) && !computes.contains(&"auto".into()));
        let has = |args: &[String], pair: [&str; 2]| args.windows(2).any(|two| two == pair);
        assert!(has(&restores, [SLOT_DIR, "saved"]), "{restores:?}");
        assert!(has(&keeps, [STORE_DIR, "auto"]), "{keeps:?}");
        let missing = RESTART.map(|(_, recipe)| programs.missing(&recipe).is_some());
        assert_eq!(missing, [false, false, true]);
        let reason = programs.lacks(SLEEP).unwrap();
        assert!(reason.contains(SLEEP), "{reason}");
        assert_eq!(
            programs.lacks(SLOT_DIR).is_none(),
            programs.ours.has(SLOT_DIR)
        );
    }

    #[test]
    fn arguments_of_the_user_come_last_and_win() {
        let case = Row::named("store").unwrap();
        let case = case.case(&programs(""), "m", Path::new("m.gguf"));
        assert!(
            case.b
                .args
                .ends_with(&["--hugepage-store", "auto", "--threads", "2"].map(String::from))
        );
        assert!(case.a.args.ends_with(&["--threads".into(), "2".into()]));
    }
}
