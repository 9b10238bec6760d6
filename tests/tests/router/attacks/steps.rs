//! Random steps of many tenants over few connections.

use switchyard_shard_schema::install::{Form, Revokes};
use switchyard_tests::raw::{Raw, messages as m};
use switchyard_tests::{Dice, Setup};

/// Many tenants, few connections, 100 000 steps: whoever asks sees rows of its own and nothing else.
///
/// A step is one statement. Many go in one message, as a message is what costs.
#[test]
fn heavy_a_hundred_thousand_random_steps_show_each_tenant_its_own_rows() {
    const STEPS: usize = 100_000;
    const THREADS: u64 = 4;
    let ids: Vec<String> = (0..12).map(|n| format!("tenant{n}")).collect();
    let s = Setup::new()
        .shards(2)
        .tenants(ids.iter().map(String::as_str))
        .pool("size = 3\nqueue_timeout = \"60s\"")
        .sealed(Form::Parameter, Revokes::default())
        .start();
    let done: usize = std::thread::scope(|scope| {
        let work = |seed: u64| {
            let (s, ids) = (&s, &ids);
            move || {
                let mut dice = Dice::new(seed);
                let mut done = 0;
                let mut sessions: Vec<Option<Raw>> = ids.iter().map(|_| None).collect();
                while done < STEPS / THREADS as usize {
                    let n = dice.roll(ids.len());
                    let session = sessions[n].get_or_insert_with(|| s.login(&ids[n]));
                    done += steps(&mut dice, session, &ids[n]);
                    if dice.roll(40) == 0 {
                        sessions[n] = None;
                    }
                }
                done
            }
        };
        let threads: Vec<_> = (1..=THREADS).map(|seed| scope.spawn(work(seed))).collect();
        threads.into_iter().map(|t| t.join().expect("no thread saw what it must not")).sum()
    });
    assert!(done >= STEPS);
    println!("{done} steps");
    for id in &ids {
        let strange = format!(
            "SELECT count(*) FROM clients WHERE tenant_id = '{id}' AND name NOT LIKE '{id} %' AND name NOT LIKE 'misplaced%'"
        );
        assert!(s.shards.iter().all(|shard| shard.value(&strange) == "0"), "{id}");
    }
}

/// One message of some statements. Every row that comes back must be the tenant's. How many there were.
fn steps(dice: &mut Dice, session: &mut Raw, tenant: &str) -> usize {
    let mut script = Vec::new();
    let transaction = dice.roll(3) == 0;
    if transaction {
        script.push("BEGIN".to_owned());
    }
    for _ in 0..8 + dice.roll(24) {
        script.push(match dice.roll(12) {
            0 => "SET app.tenant_id = 'tenant3'".to_owned(),
            1 => "SELECT '' FROM set_config('app.tenant_id', 'tenant5', false)".to_owned(),
            2 => format!(
                "INSERT INTO clients VALUES ('{tenant}', {}, '{tenant} new') ON CONFLICT DO NOTHING",
                10 + dice.roll(90)
            ),
            3 => "UPDATE clients SET name = name WHERE id < 5".to_owned(),
            4 => format!("DELETE FROM clients WHERE id = {}", 10 + dice.roll(90)),
            5 => "SET work_mem = '1MB'".to_owned(),
            6 => "SELECT tenant_id || ' ' || id FROM clients WHERE id < 4".to_owned(),
            7 => "SELECT switchyard.tenant_id() || ' '".to_owned(),
            8 => format!("SELECT name FROM clients WHERE tenant_id = 'tenant{}'", dice.roll(12)),
            9 => "SELECT name FROM clients WHERE name NOT LIKE 'tenant%'".to_owned(),
            _ => "SELECT name FROM clients WHERE id < 10".to_owned(),
        });
    }
    if transaction {
        script.push(if dice.roll(2) == 0 { "COMMIT" } else { "ROLLBACK" }.to_owned());
    } else if dice.roll(6) == 0 {
        // The last: what fails ends the message.
        script.push(["SELECT 1/0", "RESET ALL", "SELECT switchyard.enter('x')"][dice.roll(3)].to_owned());
    }
    session.send(&m::query(&script.join("; ")));
    for message in session.until_ready_or_end() {
        if message.tag == b'D' {
            for value in message.values().into_iter().flatten().filter(|v| !v.is_empty()) {
                assert!(value.starts_with(&format!("{tenant} ")), "{tenant} saw {value:?} of {script:?}");
            }
        }
    }
    script.len()
}
