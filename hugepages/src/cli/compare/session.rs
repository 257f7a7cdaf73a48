//! Runs the cases one after the other, and records the cases that were skipped or failed.

use std::io;
use std::path::Path;

use anyhow::Result;

use hugepages::compare::{
    CASES, Cancelled, CompareError, Failed, LeftOut, ModelFile, Pages as Needed, Programs, Report,
    Row, Runner, Side, Store, perplexity_arguments,
};
use hugepages::kernel::{HugePageSize, Root, sizes};
use hugepages::plan::{Plan, PlanError};

use super::arguments::{Args, PERPLEXITY, PRESSURE, SERVERS};
use super::models::Model;
use super::pages::{NoPages, Pages, Wanted, usable};
use super::print;
use crate::cli::output::Format;
use crate::cli::programs::beside;

/// Tokens to generate in the case `pressure` if the user switched off the measurement of speed.
const PRESSED_TOKENS: u32 = 8;

/// State from the first case to the last.
pub struct Session<'a> {
    pub args: &'a Args,
    pub programs: Programs,
    pub runner: Runner<'a>,
    pub pages: Pages<'a>,
    pub report: Report,
    /// Servers that did not become ready: the comparison does not wait for them again.
    pub hung: Vec<Side>,
}

/// Names of the case and of the model.
pub(super) type Name<'n> = (&'n str, &'n str);

impl Session<'_> {
    /// Adds the next model to the report.
    pub fn begin(&mut self, model: &Model) -> Result<()> {
        let files = ModelFile::open(&model.path)?;
        let described = hugepages::compare::Model::new(&model.name, &files);
        self.report.models.push(described);
        Ok(())
    }

    /// Returns the pages and completes the report.
    pub fn end(mut self) -> Report {
        self.pages.release();
        self.report.finish();
        self.report
    }

    /// Runs a row of the table of cases.
    pub fn row(&mut self, row: &Row, model: &Model) -> Result<()> {
        let name = (row.name, model.name.as_str());
        if let Some(reason) = row.missing(&self.programs) {
            self.leave_out(name, reason, None);
            return Ok(());
        }
        let mut programs = self.programs.clone();
        let mut store = None;
        if row.uses_store() && self.args.store.is_none() {
            let Some(mounted) = self.settled(name, mount())? else {
                return Ok(());
            };
            programs.store = mounted.dir().to_string_lossy().into_owned();
            store = Some(mounted);
        }
        let mut case = row.case(&programs, &model.name, &model.path);
        for side in [&case.a, &case.b] {
            if self.hung.contains(side) {
                let reason = format!("`{}` did not become ready in an earlier case", side.name);
                self.leave_out(name, reason, None);
                return Ok(());
            }
        }
        let Some(wanted) = self.planned(name, row.pages(&programs, &mut case))? else {
            return Ok(());
        };
        if !self.has_pages(name, &wanted)? {
            return Ok(());
        }
        if row.b.pages == Needed::Half
            && let Some(reason) = more_than(&wanted)
        {
            self.leave_out(name, reason, None);
            return Ok(());
        }
        let ran = self.runner.run(&case, tell);
        if let Err(CompareError::Hung { name, .. }) = &ran {
            let sides = [&case.a, &case.b].into_iter();
            let hung = sides.filter(|side| side.name == *name);
            self.hung.extend(hung.cloned());
        }
        if let Some(result) = self.settled(name, ran)? {
            if self.is_for_people() {
                print::case(&result)?;
            }
            self.report.cases.push(result);
        }
        // The store must release its pages before the lease ends.
        drop(store);
        Ok(())
    }

    /// Compares the outputs of both `llama-perplexity`.
    pub fn perplexity(&mut self, model: &Model) -> Result<()> {
        let name = (PERPLEXITY, model.name.as_str());
        let beside_baseline = self
            .programs
            .baseline
            .path
            .with_file_name("llama-perplexity");
        let own = [
            beside("llama-perplexity")?,
            beside("../tools/build/bin/llama-perplexity")?,
        ];
        let own = own.into_iter().find(|path| path.exists());
        let (baseline, ours) = match (beside_baseline.exists(), own) {
            (true, Some(ours)) => (beside_baseline, ours),
            (false, _) => {
                let reason = format!("program `{}` not found", beside_baseline.display());
                self.leave_out(name, reason, Some("cargo xtask stock".to_owned()));
                return Ok(());
            }
            (true, None) => {
                let reason = "no llama-perplexity with huge pages found".to_owned();
                self.leave_out(name, reason, Some("cargo xtask tools".to_owned()));
                return Ok(());
            }
        };
        let more = ["--hugepages", "--hugepage-policy", "require"].map(str::to_owned);
        let mut arguments = perplexity_arguments(&model.path);
        arguments.extend(more.iter().cloned());
        let plan = Plan::ask_program(&ours, &arguments).map(|plan| plan.pages());
        let Some(wanted) = self.planned(name, plan)? else {
            return Ok(());
        };
        if !self.has_pages(name, &wanted)? {
            return Ok(());
        }
        tell("perplexity of both sides");
        let programs: [&Path; 2] = [&baseline, &ours];
        let said = self
            .runner
            .perplexity(&model.name, &model.path, programs, &more);
        let said = self.settled(name, said)?;
        self.report.perplexity.extend(said);
        Ok(())
    }

    /// Several servers on one model. Ours share a resident image if the machine can mount a store.
    pub fn servers(&mut self, model: &Model) -> Result<()> {
        let name = (SERVERS, model.name.as_str());
        let shared = Row::named("store").filter(|row| row.missing(&self.programs).is_none());
        let Some(row) = shared.or_else(|| Row::named("warm")) else {
            return Ok(());
        };
        if let Some(reason) = row.missing(&self.programs) {
            self.leave_out(name, reason, None);
            return Ok(());
        }
        let mut programs = self.programs.clone();
        let mut store = None;
        if shared.is_some() && self.args.store.is_none() {
            let Some(mounted) = self.settled(name, mount())? else {
                return Ok(());
            };
            programs.store = mounted.dir().to_string_lossy().into_owned();
            store = Some(mounted);
        }
        let (stock, ours) = (
            programs.side(&row.a, &model.path),
            programs.side(&row.b, &model.path),
        );
        let servers = u64::from(self.args.servers);
        let plan = ours.plan().map(|plan| {
            let mut wanted = Wanted::new();
            for need in &plan.needs {
                let is_shared = shared.is_some() && need.is_for_store();
                if let Some(size) = HugePageSize::new(need.page_size) {
                    let times = if is_shared { 1 } else { servers };
                    *wanted.entry(size).or_default() += need.pages * times;
                }
            }
            wanted
        });
        let Some(wanted) = self.planned(name, plan)? else {
            return Ok(());
        };
        if !self.has_pages(name, &wanted)? {
            return Ok(());
        }
        let sides = [&stock, &ours];
        let count = usize::from(self.args.servers);
        let many = self.runner.many(&model.name, sides, count, tell);
        if let Some(many) = self.settled(name, many)? {
            if self.is_for_people() {
                print::servers(&many)?;
            }
            self.report.servers.push(many);
        }
        drop(store);
        Ok(())
    }

    /// Too little memory, with `--no-repack`, because repacked weights are no page cache.
    pub fn pressure(&mut self, model: &Model) -> Result<()> {
        let name = (PRESSURE, model.name.as_str());
        let Some(row) = CASES.iter().find(|row| row.name == "cold") else {
            return Ok(());
        };
        let mut programs = self.programs.clone();
        programs.args.push("--no-repack".to_owned());
        if let Some(reason) = row.missing(&programs) {
            self.leave_out(name, reason, None);
            return Ok(());
        }
        let mut case = row.case(&programs, &model.name, &model.path);
        let Some(wanted) = self.planned(name, row.pages(&programs, &mut case))? else {
            return Ok(());
        };
        if !self.has_pages(name, &wanted)? {
            return Ok(());
        }
        let tokens = match self.args.speed_tokens {
            0 => PRESSED_TOKENS,
            tokens => tokens,
        };
        let pressure = self
            .runner
            .pressure(&model.name, [&case.a, &case.b], tokens, tell);
        if let Some(pressure) = self.settled(name, pressure)? {
            if self.is_for_people() {
                print::pressure(&pressure)?;
            }
            self.report.pressure.push(pressure);
        }
        Ok(())
    }

    pub(super) fn is_for_people(&self) -> bool {
        self.args.output.format == Format::Human
    }

    /// Returns the plan, or skips the case if the server refuses these arguments on this machine.
    pub(super) fn planned(
        &mut self,
        name: Name<'_>,
        plan: Result<Wanted, PlanError>,
    ) -> Result<Option<Wanted>> {
        match plan {
            Ok(wanted) => Ok(Some(wanted)),
            Err(error @ PlanError::Refused { .. }) => {
                let hint = error.hint().map(str::to_owned);
                self.leave_out(name, error.to_string(), hint);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn has_pages(&mut self, name: Name<'_>, wanted: &Wanted) -> Result<bool> {
        match self.pages.ensure(wanted)? {
            Ok(()) => {
                self.report.note_hvo();
                Ok(true)
            }
            Err(NoPages { reason, hint }) => {
                self.leave_out(name, reason, hint);
                Ok(false)
            }
        }
    }

    /// Records an error, so that the other cases can run. Returns the error only if the user cancelled.
    pub(super) fn settled<T>(
        &mut self,
        name: Name<'_>,
        ran: Result<T, CompareError>,
    ) -> Result<Option<T>> {
        let error = match ran {
            Ok(result) => return Ok(Some(result)),
            Err(CompareError::Cancelled(Cancelled)) => {
                return Err(CompareError::from(Cancelled).into());
            }
            Err(error) => error,
        };
        let hint = error.hint();
        let (is_skipped, unequal) = (error.skips_the_case(), error.is_unequal());
        let chain = format!("{:#}", anyhow::Error::new(error));
        if is_skipped {
            self.leave_out(name, chain, hint);
            return Ok(None);
        }
        let (case, model) = name;
        eprintln!("compare: {case}: {chain}");
        if let Some(hint) = &hint {
            eprintln!("hint: {hint}");
        }
        self.report.failed.push(Failed {
            case: case.to_owned(),
            model: model.to_owned(),
            reason: chain,
            hint,
            unequal,
        });
        Ok(None)
    }

    pub(super) fn leave_out(
        &mut self,
        (case, model): Name<'_>,
        reason: String,
        hint: Option<String>,
    ) {
        eprintln!("compare: {case} skipped: {reason}");
        if let Some(hint) = &hint {
            eprintln!("hint: {hint}");
        }
        self.report.left_out.push(LeftOut {
            case: case.to_owned(),
            model: model.to_owned(),
            reason,
            hint,
        });
    }
}

pub(super) fn tell(what: &str) {
    eprintln!("compare: {what}");
}

pub(super) fn mount() -> Result<Store, CompareError> {
    let size = sizes::of_images(&Root::system());
    size.ok_or_else(|| CompareError::NoStore {
        source: io::Error::other("this kernel has no huge pages"),
    })
    .and_then(Store::mount)
}

/// With more usable pages than half of the need, the case `half` would measure something else.
fn more_than(wanted: &Wanted) -> Option<String> {
    wanted.iter().find_map(|(size, pages)| {
        let usable = usable(*size);
        (usable > *pages).then(|| {
            format!("{usable} pages of {size} are usable, but this case must have no more than {pages}, half of the pages of the model")
        })
    })
}
