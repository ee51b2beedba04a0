//! What is done to a cluster while clients use it, one thing at a time.
//!
//! Each fault ends with the cluster whole again: processes run, links pass,
//! every member serves. The clock of the machine is never changed: a member
//! whose clock jumps ([`Fault::JumpClock`]) has one of its own ([`crate::clock`]).

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use stele::proto::client::etcdserverpb::MoveLeaderRequest;

use crate::cluster::Cluster;
use crate::proxy::Mode;
use crate::support::process::Program;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillLeader,
    KillFollower,
    KillAll,
    TerminateLeader,
    PauseLeader,
    PauseFollower,
    /// Packets between it and the others are lost in both directions.
    LoseLeader,
    LoseFollower,
    /// Its connections to the others break.
    CutLeader,
    CutFollower,
    /// Nobody hears it.
    MuteLeader,
    MuteFollower,
    /// It hears nobody.
    DeafLeader,
    DeafFollower,
    /// Links fail and come back at random.
    Flap,
    Delay,
    MoveLeader,
    /// Removed, wiped, added and started anew.
    ReplaceLeader,
    ReplaceFollower,
    /// Down to one member and back.
    ShrinkAndGrow,
    /// One member whose log is slow to write; needs a failpoint.
    SlowDisk,
    /// A leader whose log stands still for several election timeouts; needs a
    /// failpoint.
    StallDisk,
    /// The wall clock of one member jumps by minutes or hours, forwards or
    /// backwards, then elsewhere, then back; the monotonic one goes on. Leases
    /// that are granted meanwhile must end, and not before their time.
    JumpClock,
}

impl Fault {
    /// All that can be done to so many members of that program.
    pub fn possible(program: Program, members: usize) -> Vec<Fault> {
        use Fault::*;
        let mut faults = vec![KillAll, TerminateLeader, PauseLeader];
        if members > 1 {
            faults.extend([
                KillLeader,
                KillFollower,
                PauseFollower,
                LoseLeader,
                LoseFollower,
                CutLeader,
                CutFollower,
                MuteLeader,
                MuteFollower,
                DeafLeader,
                DeafFollower,
                Flap,
                Delay,
                MoveLeader,
                ReplaceLeader,
                ReplaceFollower,
                ShrinkAndGrow,
            ]);
        }
        if program == Program::Stele && cfg!(feature = "failpoints") {
            faults.push(SlowDisk);
            if members > 1 {
                faults.push(StallDisk);
            }
        }
        // Go asks the kernel itself; a member alone has nobody to compare with.
        if program == Program::Stele && members > 1 && cfg!(target_os = "linux") {
            faults.push(JumpClock);
        }
        faults
    }

    /// Whether the leader is gone all of a sudden, so that the time until
    /// writes are served again is worth measuring.
    pub fn is_loss_of_leader(self) -> bool {
        use Fault::*;
        matches!(
            self,
            KillLeader | TerminateLeader | PauseLeader | LoseLeader | CutLeader | MuteLeader
        )
    }

    /// Whether it takes more than a few seconds: members are added only to a
    /// cluster that has been healthy for a while, and compare their clocks
    /// every few seconds.
    pub fn is_slow(self) -> bool {
        use Fault::*;
        matches!(
            self,
            ReplaceLeader | ReplaceFollower | ShrinkAndGrow | JumpClock
        )
    }

    fn is_of_leader(self) -> bool {
        self.is_loss_of_leader() || matches!(self, Fault::DeafLeader | Fault::ReplaceLeader)
    }
}

/// Whom a fault will hit.
pub async fn victim(fault: Fault, cluster: &Cluster, random: &mut StdRng) -> usize {
    let leader = cluster.leader().await;
    let mut others = cluster.present();
    others.retain(|number| *number != leader);
    if fault.is_of_leader() {
        leader
    } else if fault == Fault::JumpClock && random.random_bool(0.5) {
        // Leases are the leader's.
        leader
    } else {
        others.choose(random).copied().unwrap_or(leader)
    }
}

/// Carries a fault out and repairs it.
pub async fn inject(fault: Fault, victim: usize, cluster: &mut Cluster, random: &mut StdRng) {
    let timeout = cluster.election_timeout();
    let time = timeout.mul_f64(random.random_range(2.0..6.0));
    match fault {
        Fault::KillLeader | Fault::KillFollower => {
            cluster.kill(victim);
            tokio::time::sleep(time).await;
            cluster.spawn(victim);
        }
        Fault::KillAll => {
            for number in cluster.present() {
                cluster.kill(number);
            }
            for number in cluster.present() {
                cluster.spawn(number);
            }
        }
        Fault::TerminateLeader => {
            cluster.terminate(victim).await;
            tokio::time::sleep(time).await;
            cluster.spawn(victim);
        }
        Fault::PauseLeader | Fault::PauseFollower => {
            cluster.pause(victim);
            tokio::time::sleep(time).await;
            cluster.resume(victim);
        }
        Fault::LoseLeader | Fault::LoseFollower => {
            links(cluster, victim, Mode::Hold, Mode::Hold, time).await;
        }
        Fault::CutLeader | Fault::CutFollower => {
            links(cluster, victim, Mode::Cut, Mode::Cut, time).await;
        }
        Fault::MuteLeader | Fault::MuteFollower => {
            links(cluster, victim, Mode::Hold, Mode::Pass, time).await;
        }
        Fault::DeafLeader | Fault::DeafFollower => {
            links(cluster, victim, Mode::Pass, Mode::Hold, time).await;
        }
        Fault::Flap => flap(cluster, random).await,
        Fault::Delay => {
            let delay = Mode::Delay(timeout.mul_f64(random.random_range(0.02..0.15)));
            for number in cluster.present() {
                cluster.set_links(number, delay, delay);
            }
            tokio::time::sleep(time).await;
            cluster.heal_links();
        }
        Fault::MoveLeader => move_leader(cluster, victim).await,
        Fault::ReplaceLeader | Fault::ReplaceFollower => {
            cluster.remove(victim).await;
            tokio::time::sleep(time).await;
            cluster.add(victim).await;
        }
        Fault::ShrinkAndGrow => shrink_and_grow(cluster, random, time).await,
        Fault::SlowDisk => slow_disk(cluster, victim, time).await,
        Fault::StallDisk => stall_disk(cluster, victim, time).await,
        Fault::JumpClock => jump_clock(cluster, victim, random, time).await,
    }
    for number in cluster.present() {
        cluster.wait_until_ready(number).await;
    }
    cluster.assert_running();
}

async fn links(cluster: &Cluster, victim: usize, outgoing: Mode, incoming: Mode, time: Duration) {
    cluster.set_links(victim, outgoing, incoming);
    tokio::time::sleep(time).await;
    cluster.heal_links();
}

async fn flap(cluster: &Cluster, random: &mut StdRng) {
    const CHANGES: usize = 15;
    let present = cluster.present();
    for _ in 0..CHANGES {
        for from in &present {
            let mode = match random.random_range(0..4) {
                0 => Mode::Hold,
                1 => Mode::Cut,
                _ => Mode::Pass,
            };
            let others: Vec<usize> = present.iter().copied().filter(|to| to != from).collect();
            if let Some(to) = others.choose(random) {
                cluster.set_link(*from, *to, mode);
            }
        }
        let pause = cluster.election_timeout().mul_f64(random.random());
        tokio::time::sleep(pause).await;
    }
    cluster.heal_links();
}

/// Asks the leader to hand over. Refusals are its right: a follower may lag.
async fn move_leader(cluster: &Cluster, to: usize) {
    let leader = cluster.leader().await;
    let listed = cluster.list(leader).await;
    let Some(target_id) = cluster.id_of(to, &listed).filter(|_| to != leader) else {
        return;
    };
    let request = MoveLeaderRequest { target_id };
    if let Err(status) = cluster
        .clients(leader)
        .maintenance
        .move_leader(request)
        .await
    {
        println!("  leadership stays: {}", status.message());
    }
}

async fn shrink_and_grow(cluster: &mut Cluster, random: &mut StdRng, time: Duration) {
    let mut removed = Vec::new();
    while cluster.present().len() > 1 {
        let present = cluster.present();
        let number = *present.choose(random).expect("some are present");
        cluster.remove(number).await;
        removed.push(number);
    }
    tokio::time::sleep(time).await;
    for number in removed {
        cluster.add(number).await;
    }
}

/// The disk of a new leader stands still after a while, now and then.
async fn stall_disk(cluster: &mut Cluster, victim: usize, time: Duration) {
    let stall = 4 * cluster.election_timeout();
    let point = format!("raft_before_save=1%sleep({})", stall.as_millis());
    cluster.kill(victim);
    cluster.set_environment(victim, &[("FAILPOINTS", &point)]);
    cluster.restart(victim).await;
    move_leader(cluster, victim).await;
    tokio::time::sleep(time + stall).await;
    cluster.kill(victim);
    cluster.set_environment(victim, &[]);
    cluster.restart(victim).await;
}

/// One write in twenty takes a tenth of a second, in one member.
async fn slow_disk(cluster: &mut Cluster, victim: usize, time: Duration) {
    let point = [("FAILPOINTS", "raft_before_save=5%sleep(100)")];
    for environment in [&point[..], &[]] {
        cluster.kill(victim);
        cluster.set_environment(victim, environment);
        cluster.restart(victim).await;
        tokio::time::sleep(time).await;
    }
}

async fn jump_clock(cluster: &Cluster, victim: usize, random: &mut StdRng, time: Duration) {
    const JUMPS: usize = 2;
    const SECONDS: std::ops::Range<i64> = 60..12 * 3_600;
    for _ in 0..JUMPS {
        let ahead = random.random_range(SECONDS);
        let ahead = if random.random() { ahead } else { -ahead };
        println!("    {ahead} s ahead");
        // One lease is granted as the clock jumps, the next when it is seen.
        tokio::join!(
            cluster.outlive_lease(victim),
            cluster.jump_clock(victim, ahead)
        );
        cluster.outlive_lease(victim).await;
        tokio::time::sleep(time).await;
    }
    cluster.set_clock(victim, 0);
}
