//! Leases end when they should: not before their time is up since the last
//! renewal, whoever led meanwhile (etcd issue 15247), and for good (20615).
//!
//! A lease's clock begins anew somewhere between the call of a renewal and its
//! answer, so it may not end within its seconds after the *call*; that it has
//! ended is known at the latest when somebody sees it. Both bounds err on the
//! side of the server.
//!
//! Renewals do not pass the log: a leader that was cut off may answer a few
//! until it notices, and etcd 3.7 (FastLeaseKeepAlive, on by default) does not
//! wait for entries that it has yet to apply. So a renewal of a lease that has
//! just ended is tolerated for a while, where a trial says so.

use std::collections::BTreeMap;
use std::time::Duration;

use super::linear::{Cause, Found, Sighting, first_seen};
use crate::record::{Operation, Outcome, Request};
use crate::support::operation::{Change, Intent};

/// All that happened to one lease.
#[derive(Default)]
struct Lease<'a> {
    renewals: Vec<&'a Operation>,
    /// Keep-alives that found nothing.
    misses: Vec<&'a Operation>,
    /// Puts with it that succeeded, with their revision.
    puts: Vec<(&'a Operation, i64)>,
    revokes: Vec<&'a Operation>,
    /// The revision that deleted its keys.
    end: Option<i64>,
}

/// `tolerance`: for how long a lease that has ended may be renewed.
pub fn check(
    operations: &[Operation],
    found: &Found<'_>,
    sightings: &[Sighting],
    tolerance: Duration,
) -> Result<usize, String> {
    let leases = gather(operations, found);
    let first_seen = first_seen(operations, sightings);
    for (id, lease) in &leases {
        let seen = lease.end.and_then(&first_seen);
        let described = |reason: String| format!("lease {id}: {reason}");
        lease.check_time(seen).map_err(described)?;
        lease.check_end(seen, tolerance).map_err(described)?;
    }
    Ok(leases.len())
}

fn gather<'a>(operations: &'a [Operation], found: &Found<'_>) -> BTreeMap<i64, Lease<'a>> {
    let mut leases: BTreeMap<i64, Lease<'a>> = BTreeMap::new();
    for operation in operations {
        match (&operation.request, &operation.outcome) {
            (Request::Write(Intent::Grant { lease }), Outcome::Lives { .. }) => {
                leases.entry(*lease).or_default().renewals.push(operation);
            }
            (Request::KeepAlive { lease }, Outcome::Lives { ttl_seconds }) => {
                let lease = leases.entry(*lease).or_default();
                let list = if *ttl_seconds > 0 {
                    &mut lease.renewals
                } else {
                    &mut lease.misses
                };
                list.push(operation);
            }
            // Refused: there was no such lease any more.
            (Request::Write(Intent::Revoke { lease }), outcome)
                if !matches!(outcome, Outcome::Refused(_)) =>
            {
                leases.entry(*lease).or_default().revokes.push(operation);
            }
            (Request::Write(Intent::Write(changes)), Outcome::Wrote { revision }) => {
                for change in changes {
                    if let Change::Put { lease, .. } = change
                        && *lease != 0
                    {
                        let puts = &mut leases.entry(*lease).or_default().puts;
                        puts.push((operation, *revision));
                    }
                }
            }
            _ => {}
        }
    }
    for (revision, cause) in &found.causes {
        match cause {
            Cause::Expiry(lease) => {
                leases.entry(*lease).or_default().end = Some(*revision);
            }
            Cause::Request(Operation {
                request: Request::Write(Intent::Revoke { lease }),
                ..
            }) => {
                leases.entry(*lease).or_default().end = Some(*revision);
            }
            Cause::Request(_) => {}
        }
    }
    leases
}

impl Lease<'_> {
    /// It did not end by itself too early. `seen`: when its end was.
    fn check_time(&self, seen: Option<Duration>) -> Result<(), String> {
        if !self.revokes.is_empty() {
            return Ok(());
        }
        let misses = self.misses.iter().map(|miss| miss.returned);
        let Some(gone) = misses.chain(seen).min() else {
            return Ok(());
        };
        for renewal in &self.renewals {
            let Outcome::Lives { ttl_seconds } = renewal.outcome else {
                continue;
            };
            let seconds = u64::try_from(ttl_seconds).expect("a renewal has positive seconds");
            let until = renewal.invoked + Duration::from_secs(seconds);
            if gone < until {
                return Err(format!(
                    "it was gone at {gone:?} and should live until {until:?}: {renewal:?}"
                ));
            }
        }
        Ok(())
    }

    /// Nothing succeeded with it after its end.
    fn check_end(&self, seen: Option<Duration>, tolerance: Duration) -> Result<(), String> {
        let revoked = self
            .revokes
            .iter()
            .filter(|revoke| matches!(revoke.outcome, Outcome::Wrote { .. }))
            .map(|revoke| revoke.returned);
        let misses = self.misses.iter().map(|miss| miss.returned);
        let Some(gone) = revoked.chain(misses).chain(seen).min() else {
            return Ok(());
        };
        let renewals = self.renewals.iter();
        let late_renewal = renewals
            .copied()
            .find(|renewal| renewal.invoked > gone + tolerance);
        let puts = self.puts.iter().map(|(put, _)| *put);
        let late_put = puts.into_iter().find(|put| put.invoked > gone);
        if let Some(late) = late_renewal.or(late_put) {
            return Err(format!("it was gone at {gone:?}, then came {late:?}"));
        }
        let Some(end) = self.end else {
            return Ok(());
        };
        match self.puts.iter().find(|(_, revision)| *revision > end) {
            Some((put, _)) => Err(format!("its keys were deleted at {end}, then came {put:?}")),
            None => Ok(()),
        }
    }
}
