//! Feature gates: the switches of `--feature-gates`.
//!
//! All of etcd 3.7's names are known, because an unknown one stops the start
//! and manifests name them (kubeadm passes `InitialCorruptCheck=true`). Those
//! that switch nothing here are named in a warning if they are moved from
//! their default.
//!
//! One default differs from etcd's: leases have checkpoints, which always
//! persist.

/// How settled a feature is; as the label `stage` of the metric has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Alpha,
    Beta,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
        }
    }
}

pub(super) struct Gate {
    pub(super) name: &'static str,
    pub(super) stage: Stage,
    pub(super) is_on_by_default: bool,
    /// Whether it switches anything here.
    is_built: bool,
}

impl Gate {
    const fn built(mut self) -> Gate {
        self.is_built = true;
        self
    }

    const fn on(mut self) -> Gate {
        self.is_on_by_default = true;
        self
    }
}

const fn alpha(name: &'static str) -> Gate {
    Gate {
        name,
        stage: Stage::Alpha,
        is_on_by_default: false,
        is_built: false,
    }
}

const fn beta(name: &'static str) -> Gate {
    Gate {
        name,
        stage: Stage::Beta,
        is_on_by_default: true,
        is_built: false,
    }
}

const GATES: &[Gate] = &[
    alpha("StopGRPCServiceOnDefrag"),
    alpha("InitialCorruptCheck").built(),
    alpha("CompactHashCheck"),
    beta("TxnModeWriteWithSharedBuffer"),
    alpha("LeaseCheckpoint").built().on(),
    alpha("LeaseCheckpointPersist"),
    alpha("SetMemberLocalAddr").built(),
    beta("FastLeaseKeepAlive"),
    alpha("PriorityRequest"),
];

pub(super) fn find(name: &str) -> Option<&'static Gate> {
    GATES.iter().find(|gate| gate.name == name)
}

/// A feature as it was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    pub name: &'static str,
    pub stage: Stage,
    pub is_on: bool,
}

/// Applies `switches`, in their order, to the defaults. `AllAlpha` and
/// `AllBeta` set what no switch names by itself.
pub(super) fn resolve(switches: &[(String, bool)]) -> Result<Vec<Feature>, String> {
    let last = |name: &str| {
        switches
            .iter()
            .rev()
            .find(|(n, _)| n == name)
            .map(|(_, on)| *on)
    };
    for (name, _) in switches {
        if find(name).is_none() && !["AllAlpha", "AllBeta"].contains(&name.as_str()) {
            return Err(format!("unrecognized feature gate: {name}"));
        }
    }
    let feature = |gate: &Gate| {
        let group = if gate.stage == Stage::Alpha {
            "AllAlpha"
        } else {
            "AllBeta"
        };
        let is_on = last(gate.name)
            .or_else(|| last(group))
            .unwrap_or(gate.is_on_by_default);
        Feature {
            name: gate.name,
            stage: gate.stage,
            is_on,
        }
    };
    let features: Vec<Feature> = GATES.iter().map(feature).collect();
    let is_on = |name: &str| {
        features
            .iter()
            .any(|feature| feature.name == name && feature.is_on)
    };
    if is_on("LeaseCheckpointPersist") && !is_on("LeaseCheckpoint") {
        let text = "feature LeaseCheckpointPersist needs feature LeaseCheckpoint";
        return Err(text.to_owned());
    }
    Ok(features)
}

/// The names of `features` that are not as they are by default and switch
/// nothing.
pub(super) fn moved(features: &[Feature]) -> Vec<&'static str> {
    let is_moved = |feature: &&Feature| {
        let gate = find(feature.name);
        gate.is_some_and(|gate| gate.is_on_by_default != feature.is_on && !gate.is_built)
    };
    features
        .iter()
        .filter(is_moved)
        .map(|feature| feature.name)
        .collect()
}

/// Reads `Name=bool,...`.
pub(super) fn parse(text: &str) -> Result<Vec<(String, bool)>, String> {
    let pair = |item: String| {
        let (name, value) = item
            .split_once('=')
            .ok_or_else(|| format!("missing bool value for {item}"))?;
        match super::value::Kind::Bool.parse(value.trim())? {
            super::value::Value::Bool(is_on) => Ok((name.trim().to_owned(), is_on)),
            _ => unreachable!("a boolean is read as one"),
        }
    };
    super::value::split_list(text)
        .into_iter()
        .map(pair)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(text: &str) -> Result<Vec<&'static str>, String> {
        let features = resolve(&parse(text)?)?;
        Ok(features
            .iter()
            .filter(|feature| feature.is_on)
            .map(|feature| feature.name)
            .collect())
    }

    #[test]
    fn switches_apply_to_defaults() {
        let defaults = [
            "TxnModeWriteWithSharedBuffer",
            "LeaseCheckpoint",
            "FastLeaseKeepAlive",
        ];
        assert_eq!(on("").unwrap(), defaults);
        assert_eq!(on("AllBeta=false,LeaseCheckpoint=false").unwrap(), [""; 0]);
        assert_eq!(
            on("AllBeta=false, AllAlpha=0, FastLeaseKeepAlive=1").unwrap(),
            ["FastLeaseKeepAlive"]
        );
        assert_eq!(on("AllAlpha=true,AllBeta=false").unwrap().len(), 7);
        assert_eq!(
            moved(
                &resolve(&parse("InitialCorruptCheck=true,CompactHashCheck=true").unwrap())
                    .unwrap()
            ),
            ["CompactHashCheck"]
        );
    }

    #[test]
    fn bad_switches_are_refused() {
        assert_eq!(
            on("Fancy=true").unwrap_err(),
            "unrecognized feature gate: Fancy"
        );
        assert_eq!(
            on("CompactHashCheck").unwrap_err(),
            "missing bool value for CompactHashCheck"
        );
        assert!(on("CompactHashCheck=yes").is_err());
        assert!(on("LeaseCheckpointPersist=true,LeaseCheckpoint=false").is_err());
        assert!(on("LeaseCheckpointPersist=true").is_ok());
    }
}
