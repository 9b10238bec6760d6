//! `switchyard doctor`.

use anyhow::{Context, anyhow};
use clap::Args;
use switchyard_shard_schema::doctor::{Expected, Severity, compare, examine};

use super::schema::{ModeArg, mode_of};
use super::targets::{Found, Targets, connect};
use crate::args::OutputFormat;
use crate::failure::{Failure, Outcome};
use crate::output;

/// Find what makes isolation void or stands in the way of a move, on shards and in the configuration.
///
/// Exit code 1 if anything of severity error is found.
#[derive(Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    targets: Targets,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    output: OutputFormat,
    /// What policies should ask; that of --config, else plain.
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// The variable of the plain mode; that of --config, else app.tenant_id.
    #[arg(long)]
    variable: Option<String>,
    /// The tenant column.
    #[arg(long, default_value = "tenant_id")]
    column: String,
    /// A role that routers log in as; may be repeated. Those of --config, else the URL's.
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
}

impl DoctorArgs {
    pub(crate) fn run(self) -> Outcome {
        super::run(self.look())
    }

    async fn look(self) -> Outcome {
        let found = self.targets.find()?;
        let expected = self.expected(&found);
        let mut findings = Vec::new();
        let mut facts = Vec::new();
        for shard in &found.shards {
            let client = connect(shard).await?;
            let (of_shard, fact) = examine(&*client, shard.name.as_str(), &expected)
                .await
                .with_context(|| format!("shard {}", shard.name))?;
            findings.extend(of_shard);
            facts.push(fact);
        }
        findings.extend(compare(&facts));
        for warning in found.file.iter().flat_map(|f| &f.warnings) {
            eprintln!("warning: {warning}");
        }
        let errors = findings.iter().filter(|f| f.severity == Severity::Error).count();
        match self.output {
            OutputFormat::Json => output::json(&serde_json::to_value(&findings)?)?,
            OutputFormat::Table => {
                for f in &findings {
                    output::line(&format!(
                        "{}: {}: {}: {} [{}]",
                        f.severity, f.shard, f.object, f.message, f.code
                    ))?;
                    for line in f.fix.iter().flat_map(|fix| fix.lines()) {
                        output::line(&format!("    {line}"))?;
                    }
                }
                if findings.is_empty() {
                    output::line(&format!("nothing found on {} shards", found.shards.len()))?;
                }
            }
        }
        match errors {
            0 => Ok(()),
            n => Err(Failure::Error(anyhow!("{n} findings of severity error"))),
        }
    }

    fn expected(&self, found: &Found) -> Expected {
        let topology = found.file.as_ref().map(|f| &f.topology);
        // The variable whose value is the tenant.
        let of_file = topology.and_then(|t| {
            let tenant = t.context.variables.iter().find(|(_, value)| value.as_str() == "{tenant}");
            tenant.map(|(name, _)| name.clone())
        });
        let variable = self.variable.clone().or(of_file).unwrap_or_else(|| "app.tenant_id".to_owned());
        let mut roles = self.roles.clone();
        if roles.is_empty() {
            let shards = topology.iter().flat_map(|t| &t.shards).map(|s| s.login.user.clone());
            let users = topology.iter().flat_map(|t| t.users.values());
            let own = users.filter_map(|u| u.server_login.as_ref()).map(|l| l.user.clone());
            roles = shards.chain(own).collect();
        }
        if roles.is_empty() {
            roles = found.shards.iter().map(|s| s.user().to_owned()).collect();
        }
        roles.sort();
        roles.dedup();
        let keys = found.file.as_ref().and_then(|f| f.settings.seal.as_ref());
        Expected {
            column: self.column.clone(),
            mode: mode_of(found, self.mode, &variable),
            roles,
            kids: keys.map(|s| s.keys.iter().map(|k| k.kid).collect()).unwrap_or_default(),
            shards: found.shards.len(),
        }
    }
}
