//! `shard drain`: a move for each tenant of a shard.

use std::collections::{BTreeMap, HashMap};

use clap::Args;
use serde_json::{Value, json};

use super::{COLUMNS, How, Wait, begin, number, wait};
use crate::failure::{Failure, Outcome};
use crate::http::segment;
use crate::verbs::Session;

/// Moves everybody away from a shard.
#[derive(Args)]
pub(crate) struct DrainArgs {
    /// The shard.
    name: String,
    /// Where to; else where the fewest tenants live, among shards that are not cordoned.
    #[arg(long)]
    to: Option<String>,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    wait: Wait,
}

impl DrainArgs {
    /// Begins a move for each tenant that has none, and waits for all if asked to. A tenant that cannot be moved is
    /// told of, and keeps no other from it.
    pub(crate) async fn run(self, session: &Session) -> Outcome {
        let name = &self.name;
        session.api.patch(&format!("/v1/shards/{}", segment(name)), json!({ "cordoned": true })).await?;
        let tenants = session.all(&format!("/v1/tenants?limit=1000&shard={}", segment(name))).await?;
        let mut load = self.places(session).await?;
        let mut under_way = self.under_way(session).await?;
        for one in under_way.values() {
            if let Some(living) = one["target"].as_str().and_then(|to| load.get_mut(to)) {
                *living += 1;
            }
        }
        let mut moves = Vec::new();
        for tenant in &tenants {
            let tenant = tenant["id"].as_str().unwrap_or_default();
            if let Some(one) = under_way.remove(tenant) {
                moves.push(one);
                continue;
            }
            let Some((to, living)) = load.iter_mut().min_by_key(|(_, living)| **living) else {
                return Err(Failure::Conflict("there is no shard to go to".to_owned()));
            };
            match begin(session, tenant, to, "move", &self.how).await {
                Ok(one) => {
                    *living += 1;
                    moves.push(one);
                }
                Err(Failure::Conflict(why) | Failure::NotFound(why)) => moves.push(json!({
                    "tenant": tenant, "source": name, "target": to, "kind": "move", "phase": "not begun",
                    "error": why,
                })),
                Err(error) => return Err(error),
            }
        }
        if moves.is_empty() {
            return session.done(&format!("nobody lives on {name}"));
        }
        let late = if self.wait.wait { self.wait_for(session, &mut moves).await? } else { 0 };
        let columns = [COLUMNS, &[("ERROR", "error")]].concat();
        session.show_list(&columns, moves.clone())?;
        let stays =
            |one: &Value| one["id"].is_null() || (one["phase"] == "done" && one["outcome"] != "completed");
        match moves.iter().filter(|one| stays(one)).count() {
            0 if late > 0 => {
                Err(Failure::StillRunning(format!("{late} of {} tenants are still moving", moves.len())))
            }
            0 => Ok(()),
            n => Err(Failure::Conflict(format!("{n} of {} tenants stay on {name}", moves.len()))),
        }
    }

    /// Shards that may be gone to, and how many tenants live there.
    async fn places(&self, session: &Session) -> Outcome<BTreeMap<String, usize>> {
        let mut load = BTreeMap::new();
        for shard in session.all("/v1/shards").await? {
            let other = shard["name"].as_str().unwrap_or_default();
            let wanted = self.to.as_deref().map_or(shard["cordoned"] != true, |to| to == other);
            if other != self.name && wanted {
                let living = session.all(&format!("/v1/tenants?limit=1000&shard={}", segment(other))).await?;
                load.insert(other.to_owned(), living.len());
            }
        }
        match &self.to {
            Some(to) if *to == self.name => Err(Failure::Usage("it cannot be drained to itself".to_owned())),
            Some(to) if load.is_empty() => Err(Failure::NotFound(format!("there is no shard `{to}`"))),
            _ => Ok(load),
        }
    }

    /// Moves away from the shard that have not gone over yet, by tenant: of a drain before this one, or of somebody else.
    async fn under_way(&self, session: &Session) -> Outcome<HashMap<String, Value>> {
        let mut found = HashMap::new();
        let mut before = String::new();
        loop {
            let mut answer = session.api.get(&format!("/v1/moves?open=true&limit=1000{before}")).await?;
            let items = answer["items"].take();
            let items = items.as_array().cloned().unwrap_or_default();
            let Some(last) = items.last().map(number) else { return Ok(found) };
            for one in items {
                let gone_over =
                    matches!(one["phase"].as_str(), Some("moved" | "completing" | "rolling_back"));
                let away = one["source"] == self.name.as_str() && one["kind"] == "move" && !gone_over;
                if away && let Some(tenant) = one["tenant"].as_str().map(str::to_owned) {
                    found.insert(tenant, one);
                }
            }
            before = format!("&before={last}");
        }
    }

    /// Waits until each has gone over or ended. How many have not in time.
    async fn wait_for(&self, session: &Session, moves: &mut [Value]) -> Outcome<usize> {
        let (until, mut late) = (self.wait.until(), 0);
        for one in moves.iter_mut().filter(|one| !one["id"].is_null()) {
            let id = number(one);
            match wait(session, id, until, true).await {
                Ok(now) => *one = now,
                Err(Failure::StillRunning(_)) => {
                    late += 1;
                    *one = session.api.get(&format!("/v1/moves/{id}")).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(late)
    }
}
