//! A cluster in which the seal decides who sees what.

use secrecy::SecretString;
use switchyard_config::ShardName;
use switchyard_config::seal::{SealKey, parse_seal_keys};
use switchyard_shard_schema::connect::Target;
use switchyard_shard_schema::install::{Form, InstallOptions, Revokes, install};
use switchyard_shard_schema::keys;

use crate::cluster::{Cluster, SUPERUSER, SUPERUSER_PASSWORD};

/// The key of every sealed setup, as a file of keys has it.
pub const SEAL_KEY: &str = "1 00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";

/// Policies of the application's tables that ask for the tenant that was entered.
pub const POLICIES: &str = "DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['clients', 'campaigns', 'leads', 'conversations'] LOOP
        EXECUTE format('DROP POLICY tenant ON public.%I', t);
        EXECUTE format('CREATE POLICY sealed ON public.%I USING (tenant_id = (SELECT switchyard.tenant_id()))
                        WITH CHECK (tenant_id = (SELECT switchyard.tenant_id()))', t);
    END LOOP;
END $$";

/// That key.
///
/// # Panics
/// Never.
pub fn seal_key() -> SealKey {
    parse_seal_keys(SEAL_KEY).expect("a key").remove(0)
}

/// Installs the schema with [`SEAL_KEY`] and [`POLICIES`].
///
/// # Panics
/// If that fails.
pub fn seal(cluster: &Cluster, form: Form, revokes: Revokes) {
    let url = SecretString::from(cluster.url(SUPERUSER, SUPERUSER_PASSWORD));
    let work = async move {
        let name = ShardName::new("sealed").expect("a name");
        let mut client =
            Target::new(name, &url).expect("a url").connect().await.expect("the cluster answers");
        let options = InstallOptions { form: Some(form), revokes };
        install(&mut client, &options).await.expect("the schema installs");
        keys::add(&mut client, &[seal_key()]).await.expect("the key is taken");
    };
    // Of its own, as the caller may be within a runtime.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(work);
        });
    });
    cluster.sql(POLICIES);
}
