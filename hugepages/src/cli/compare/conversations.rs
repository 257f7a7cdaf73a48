//! Runs the cases with a conversation: `restart`, `sleep`, `switch` and `traffic`.

use std::path::Path;

use anyhow::{Context, Result};

use hugepages::compare::{
    CompareError, Pause, Programs, RESTART as SIDES, Resume, RoutedModel, SLEEP, SWITCH as ROUTERS,
    Scratch, Store, context_size, link_models,
};

use super::arguments::{SWITCH, TRAFFIC};
use super::models::{self, Model};
use super::pages::Wanted;
use super::print;
use super::session::{Session, mount, tell};

/// A case with a router.
struct Routed {
    /// Names of all models, for the report.
    names: String,
    models: Vec<RoutedModel>,
    /// The directory of the router.
    dir: Scratch,
    /// Removed with the value.
    _store: Store,
}

impl Session<'_> {
    /// A conversation that goes on after a restart or a sleep. The store and the saved slot are temporary, so that no conversation of the user is
    /// overwritten and none of the comparison remains.
    pub fn restart(&mut self, pause: Pause, model: &Model) -> Result<()> {
        let name = (pause.name(), model.name.as_str());
        let mut recipes = SIDES.iter();
        if let Some(reason) = recipes.find_map(|(_, recipe)| self.programs.missing(recipe)) {
            self.leave_out(name, reason, None);
            return Ok(());
        }
        if pause == Pause::Sleep
            && let Some(reason) = self.programs.lacks(SLEEP)
        {
            self.leave_out(name, reason, None);
            return Ok(());
        }
        let store = self.temporary_store();
        let Some(store) = self.settled(name, store)? else {
            return Ok(());
        };
        let slots = Scratch::new_in(&models::place());
        let slots = slots.context("cannot create a directory for a saved slot")?;
        let mut programs = self.in_conversation(&store, self.args.restart_tokens);
        programs.slots = slots.path().to_string_lossy().into_owned();
        let sides = SIDES.map(|(resume, recipe)| (resume, programs.side(&recipe, &model.path)));
        let mut kept = sides.iter().filter(|(resume, _)| *resume == Resume::Keep);
        let Some((_, kept)) = kept.next() else {
            return Ok(());
        };
        let plan = kept.plan().map(|plan| plan.pages());
        let Some(wanted) = self.planned(name, plan)? else {
            return Ok(());
        };
        if !self.has_pages(name, &wanted)? {
            return Ok(());
        }
        let tokens = self.args.restart_tokens;
        let restart = self
            .runner
            .restart(pause, &model.name, &sides, tokens, tell);
        if let Some(restart) = self.settled(name, restart)? {
            if self.is_for_people() {
                print::restart(&restart)?;
            }
            self.report.restarts.push(restart);
        }
        drop(store);
        Ok(())
    }

    /// All models in turn behind a router.
    pub fn switch(&mut self, models: &[Model]) -> Result<()> {
        let lengths = &self.args.switch_tokens;
        let longest = lengths.iter().copied().max().unwrap_or_default();
        let Some(routed) = self.routed(SWITCH, models, longest)? else {
            return Ok(());
        };
        let (models, dir) = (&routed.models, routed.dir.path());
        let switch = self.runner.switch(models, dir, lengths, tell);
        if let Some(switch) = self.settled((SWITCH, &routed.names), switch)? {
            if self.is_for_people() {
                print::switch(&switch)?;
            }
            self.report.switch = Some(switch);
        }
        Ok(())
    }

    /// Many messages to all models behind a router.
    pub fn traffic(&mut self, models: &[Model]) -> Result<()> {
        let longest = self.args.traffic_tokens;
        let Some(routed) = self.routed(TRAFFIC, models, longest)? else {
            return Ok(());
        };
        let (models, dir) = (&routed.models, routed.dir.path());
        let size = (self.args.messages, longest);
        let traffic = self.runner.traffic(models, dir, size, tell);
        if let Some(traffic) = self.settled((TRAFFIC, &routed.names), traffic)? {
            if self.is_for_people() {
                print::traffic(&traffic)?;
            }
            self.report.traffic = Some(traffic);
        }
        Ok(())
    }

    /// Prepares a case with a router and conversations of up to `longest` tokens. The store and the directory of the router are
    /// temporary, as in [`Self::restart`]. `None` if the case cannot run, which the report says then.
    fn routed(&mut self, case: &str, models: &[Model], longest: u32) -> Result<Option<Routed>> {
        let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
        let names = names.join(" and ");
        let name = (case, names.as_str());
        if let Some((reason, hint)) = models::too_few(case, self.args) {
            self.leave_out(name, reason, Some(hint.to_owned()));
            return Ok(None);
        }
        let mut recipes = ROUTERS.iter();
        if let Some(reason) = recipes.find_map(|recipe| self.programs.missing(recipe)) {
            self.leave_out(name, reason, None);
            return Ok(None);
        }
        let store = self.temporary_store();
        let Some(store) = self.settled(name, store)? else {
            return Ok(None);
        };
        let dir = Scratch::new_in(&models::place());
        let dir = dir.context("cannot create a directory for the router")?;
        let paths = models.iter().map(|model| model.path.as_path());
        link_models(dir.path(), paths).context("cannot link the models")?;
        let programs = self.in_conversation(&store, longest);
        let routed = models.iter().map(|model| RoutedModel {
            name: model.name.clone(),
            sides: ROUTERS.map(|recipe| programs.side(&recipe, &model.path)),
        });
        let models: Vec<_> = routed.collect();
        // The store keeps the weights and contexts of all models.
        let mut wanted = Wanted::new();
        for model in &models {
            let plan = model.sides[1].plan().map(|plan| plan.pages());
            let Some(pages) = self.planned(name, plan)? else {
                return Ok(None);
            };
            for (size, count) in pages {
                *wanted.entry(size).or_default() += count;
            }
        }
        let has_pages = self.has_pages(name, &wanted)?;
        Ok(has_pages.then_some(Routed {
            names,
            models,
            dir,
            _store: store,
        }))
    }

    /// A store that nothing else uses.
    fn temporary_store(&self) -> Result<Store, CompareError> {
        match &self.args.store {
            Some(dir) => Store::new_in(Path::new(dir)),
            None => mount(),
        }
    }

    /// The programs with this store, and with a context for a conversation of `tokens` tokens.
    fn in_conversation(&self, store: &Store, tokens: u32) -> Programs {
        let mut programs = self.programs.clone();
        programs.store = store.dir().to_string_lossy().into_owned();
        let context = context_size(tokens, self.args.tokens);
        programs
            .args
            .splice(..0, ["--ctx-size".to_owned(), context.to_string()]);
        programs
    }
}
