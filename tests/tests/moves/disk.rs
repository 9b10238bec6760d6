//! A target whose disk is full: the move waits for room, and its tenant goes on.

use std::path::PathBuf;
use std::process::Command;

use switchyard_tests::process::{TempDir, give_to_postgres};
use switchyard_tests::wait;

use crate::world::{Model, World};

/// A file system of its own, which can be made larger. Gone on drop.
struct Disk {
    dir: TempDir,
}

impl Disk {
    /// None where nobody may mount one.
    fn mount(megabytes: u32) -> Option<Self> {
        let disk = Self { dir: TempDir::new() };
        std::fs::create_dir_all(disk.at()).expect("the directory is ours");
        let size = format!("size={megabytes}m");
        let done = disk.run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs"]);
        give_to_postgres(&disk.at());
        done.then_some(disk)
    }

    fn at(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn resize(&self, megabytes: u32) {
        assert!(self.run("mount", &["-o", &format!("remount,size={megabytes}m")]));
    }

    fn run(&self, program: &str, args: &[&str]) -> bool {
        Command::new(program).args(args).arg(self.at()).output().is_ok_and(|o| o.status.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.run("umount", &["-l"]);
    }
}

/// What keeps rows from being written on the target: a full disk where one can be had, else what says the same.
enum Full {
    Disk(Disk),
    Trigger,
}

impl Full {
    fn make(world: &World) -> Self {
        match Disk::mount(3) {
            Some(disk) => {
                let at = disk.at().display().to_string();
                world.m.shards[1].sql(&format!("CREATE TABLESPACE small LOCATION '{at}'"));
                world.m.shards[1].sql("ALTER TABLE ballast SET TABLESPACE small");
                Self::Disk(disk)
            }
            None => {
                world.m.shards[1].sql(
                    "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
                         $$ BEGIN RAISE 'no space left' USING ERRCODE = '53100'; END $$;
                     CREATE TRIGGER full_disk BEFORE INSERT ON ballast FOR EACH ROW EXECUTE FUNCTION full_disk();
                     ALTER TABLE ballast ENABLE ALWAYS TRIGGER full_disk",
                );
                Self::Trigger
            }
        }
    }

    fn make_room(&self, world: &World) {
        match self {
            Self::Disk(disk) => disk.resize(64),
            Self::Trigger => drop(world.m.shards[1].sql("DROP TRIGGER full_disk ON ballast")),
        }
    }
}

#[test]
fn a_move_to_a_full_disk_waits_for_room() {
    let mut world = World::start(Model::Rows, false);
    world.grow();
    let full = Full::make(&world);
    let id = world.m.cli(&["move", "start", "acme", "--to", "s1", "--attempts", "1000"])["id"].to_string();
    wait::until_true("the disk to be full", || world.show(&id, "error").contains("53100"));
    world.wait_write();
    full.make_room(&world);
    wait::until_true("the move", || world.show(&id, "phase") == "moved");
    let done = world.m.cli(&["move", "complete", &id, "--wait", "--timeout", "60"]);
    assert_eq!(done["outcome"], "completed", "{done}");
    world.home = 1;
    assert_eq!(world.check(), [""; 0], "no client is to see an error");
    world.nothing_left();
}
