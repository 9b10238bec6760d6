//! The keys of the seal on a shard.

use aws_lc_rs::rand;
use switchyard_config::seal::{SEAL_KEY_BYTES, SealKey};
use tokio_postgres::{Client, GenericClient};
use zeroize::Zeroizing;

use crate::SchemaError;

/// Block size of SHA-256, in bytes. // RFC 2104, section 2
const BLOCK_BYTES: usize = 64;

/// A new key.
///
/// # Errors
/// If the system gives no random numbers.
pub fn generate(kid: u32) -> Result<SealKey, SchemaError> {
    let mut secret = Zeroizing::new([0; SEAL_KEY_BYTES]);
    rand::fill(secret.as_mut_slice()).map_err(|_| SchemaError::Random)?;
    Ok(SealKey { kid, secret })
}

/// The blocks that HMAC hashes first: the key, padded, with ipad and with opad. // RFC 2104, section 2
fn block(key: &SealKey, pad: u8) -> Zeroizing<Vec<u8>> {
    let mut block = Zeroizing::new(vec![pad; BLOCK_BYTES]);
    for (byte, key) in block.iter_mut().zip(key.secret.iter()) {
        *byte ^= key;
    }
    block
}

/// The numbers of the keys that the shard accepts.
///
/// # Errors
/// If PostgreSQL refuses.
pub async fn list(client: &impl GenericClient) -> Result<Vec<u32>, SchemaError> {
    let rows = client.query("SELECT kid FROM switchyard.seal_key ORDER BY kid", &[]).await?;
    Ok(rows.iter().map(|row| row.get::<_, i32>(0) as u32).collect())
}

/// Makes the shard accept these keys, beside those it accepts already. Whether anything changed.
///
/// # Errors
/// If the shard has another key of the same number, or PostgreSQL refuses.
pub async fn add(client: &mut Client, keys: &[SealKey]) -> Result<bool, SchemaError> {
    let transaction = client.transaction().await?;
    keep_out_of_the_log(&transaction).await?;
    let mut changed = false;
    for key in keys {
        let insert =
            "INSERT INTO switchyard.seal_key (kid, k_in, k_out) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        let (inner, outer) = (block(key, 0x36), block(key, 0x5c));
        let kid = key.kid as i32;
        if transaction.execute(insert, &[&kid, &inner.as_slice(), &outer.as_slice()]).await? == 1 {
            changed = true;
            continue;
        }
        let same = "SELECT k_in = $2 FROM switchyard.seal_key WHERE kid = $1";
        if !transaction.query_one(same, &[&kid, &inner.as_slice()]).await?.get::<_, bool>(0) {
            let text = format!("the shard has another key of number {kid}; give the new one a new number");
            return Err(SchemaError::Refused(text));
        }
    }
    transaction.commit().await?;
    Ok(changed)
}

/// Makes the shard accept no key but these. The numbers of those that went.
///
/// # Errors
/// If PostgreSQL refuses.
pub async fn keep_only(client: &impl GenericClient, kids: &[u32]) -> Result<Vec<u32>, SchemaError> {
    let kids: Vec<i32> = kids.iter().map(|kid| *kid as i32).collect();
    let delete = "DELETE FROM switchyard.seal_key WHERE kid <> ALL ($1) RETURNING kid";
    let rows = client.query(delete, &[&kids]).await?;
    Ok(rows.iter().map(|row| row.get::<_, i32>(0) as u32).collect())
}

/// Parameters of statements are not logged where we may say so.
async fn keep_out_of_the_log(client: &impl GenericClient) -> Result<(), SchemaError> {
    let superuser: bool =
        client.query_one("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", &[]).await?.get(0);
    if superuser {
        let quiet = "SET LOCAL log_statement = 'none'; SET LOCAL log_min_duration_statement = -1;
                     SET LOCAL log_min_duration_sample = -1; SET LOCAL log_duration = off;
                     SET LOCAL log_transaction_sample_rate = 0; SET LOCAL log_parameter_max_length = 0;
                     SET LOCAL log_parameter_max_length_on_error = 0";
        client.batch_execute(quiet).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_hmac() {
        let key = SealKey { kid: 1, secret: Zeroizing::new([0x01; SEAL_KEY_BYTES]) };
        let inner = block(&key, 0x36);
        assert_eq!((inner.len(), inner[0], inner[31], inner[32], inner[63]), (64, 0x37, 0x37, 0x36, 0x36));
        assert_eq!(block(&key, 0x5c)[31..33], [0x5d, 0x5c]);
        assert_ne!(generate(1).unwrap(), generate(1).unwrap());
    }
}
