//! Alarms: raised and disarmed by command, kept until disarmed, and in the way
//! of commands that would make things worse (MNT-4 to MNT-10).

use std::collections::BTreeSet;

use super::{Body, CommandError, Machine, header, txn};
use crate::metrics;
use crate::mvcc::Writer;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmResponse, AlarmType};
use crate::storage::{Column, Engine, StorageError};

/// Rows of `Meta`: this prefix, member id, alarm type (both big-endian).
const PREFIX: &[u8] = b"alarm/";

/// The set of (member id, alarm type) that are up.
pub(super) struct Alarms {
    active: BTreeSet<(u64, i32)>,
}

impl Alarms {
    pub(super) fn open(engine: &Engine) -> Result<Alarms, StorageError> {
        let mut active = BTreeSet::new();
        for (key, _) in engine.scan_prefix(Column::Meta, PREFIX)? {
            let alarm = decode_key(&key)
                .ok_or_else(|| StorageError::corrupt(Column::Meta, &key, "not an alarm"))?;
            active.insert(alarm);
        }
        Ok(Alarms { active })
    }

    pub(super) fn list(&self) -> Vec<AlarmMember> {
        self.active.iter().map(|&alarm| message(alarm)).collect()
    }

    /// Refuses what the alarms forbid. CORRUPT is looked at first: it forbids
    /// more.
    pub(super) fn admit(&self, body: &Body) -> Result<(), CommandError> {
        if self.active.is_empty() {
            return Ok(());
        }
        if self.is_active(AlarmType::Corrupt) {
            match body {
                Body::Put(_)
                | Body::DeleteRange(_)
                | Body::Txn(_)
                | Body::Compaction(_)
                | Body::LeaseGrant(_)
                | Body::LeaseRevoke(_)
                | Body::LeaseExpiry(_) => return Err(CommandError::Corrupt),
                Body::Alarm(_)
                | Body::LeaseCheckpoint(_)
                | Body::Publish(_)
                | Body::MemberChange(_) => {}
            }
        }
        if self.is_active(AlarmType::Nospace) {
            let grows = match body {
                Body::Put(_) | Body::LeaseGrant(_) => true,
                Body::Txn(request) => txn::has_put(request),
                _ => false,
            };
            if grows {
                return Err(CommandError::NoSpace);
            }
        }
        Ok(())
    }

    fn is_active(&self, alarm: AlarmType) -> bool {
        self.active.iter().any(|&(_, kind)| kind == alarm as i32)
    }

    fn activate(&mut self, writer: &mut Writer, alarm: (u64, i32)) {
        if self.active.insert(alarm) {
            writer.put_meta(&encode_key(alarm), &[]);
        }
    }

    fn deactivate(&mut self, writer: &mut Writer, alarm: (u64, i32)) -> bool {
        let was_active = self.active.remove(&alarm);
        if was_active {
            writer.delete_meta(&encode_key(alarm));
        }
        was_active
    }
}

impl Machine {
    pub(super) fn alarm(&mut self, request: &AlarmRequest) -> AlarmResponse {
        let alarm = (request.member_id, request.alarm);
        let is_named = request.alarm != AlarmType::None as i32;
        let alarms = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => {
                let mut alarms = self.alarms.list();
                alarms.retain(|each| !is_named || each.alarm == request.alarm);
                alarms
            }
            Ok(AlarmAction::Activate) if is_named => {
                self.alarms.activate(&mut self.writer, alarm);
                vec![message(alarm)]
            }
            Ok(AlarmAction::Deactivate) if self.alarms.deactivate(&mut self.writer, alarm) => {
                vec![message(alarm)]
            }
            // An unknown action crashes older versions of etcd (MNT-11).
            Ok(AlarmAction::Activate | AlarmAction::Deactivate) | Err(_) => Vec::new(),
        };
        if request.action != AlarmAction::Get as i32 {
            self.published.set_alarms(self.alarms.list());
            self.show(alarm);
        }
        AlarmResponse {
            header: header(self.writer.revision()),
            alarms,
        }
    }

    /// In the metrics. A request can name any member id, and a label stays, so
    /// those that are no members have none.
    fn show(&self, alarm: (u64, i32)) {
        let Ok(kind) = AlarmType::try_from(alarm.1) else {
            return;
        };
        let id = format!("{:x}", alarm.0);
        let labels = [id.as_str(), kind.as_str_name()];
        if self.members.has(alarm.0) {
            let is_up = self.alarms.active.contains(&alarm);
            metrics::DEBUGGING_SERVER_ALARMS
                .with_label_values(&labels)
                .set(i64::from(is_up));
        } else {
            // Fails if it has none, which is what is wanted.
            let _ = metrics::DEBUGGING_SERVER_ALARMS.remove_label_values(&labels);
        }
    }
}

fn message((member_id, alarm): (u64, i32)) -> AlarmMember {
    AlarmMember { member_id, alarm }
}

fn encode_key((member_id, alarm): (u64, i32)) -> Vec<u8> {
    [
        PREFIX,
        &member_id.to_be_bytes()[..],
        &alarm.to_be_bytes()[..],
    ]
    .concat()
}

fn decode_key(key: &[u8]) -> Option<(u64, i32)> {
    let (member_id, alarm) = key.strip_prefix(PREFIX)?.split_at_checked(8)?;
    Some((
        u64::from_be_bytes(member_id.try_into().ok()?),
        i32::from_be_bytes(alarm.try_into().ok()?),
    ))
}
