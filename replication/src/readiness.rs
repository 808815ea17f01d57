//! Between the commit of its `EpochStart` and its first answer, a primary may have to wait for its machine: what an
//! operator has run at a promotion (a hook) comes before any client is served (R6.8). Nothing but service waits: the epoch
//! holds its lease, feeds its copies and may change its members.

use mainstay_types::Epoch;

use crate::member::{Member, Output, State};

/// Whether nothing but `EpochStart` is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// The driver is to be asked once `EpochStart` is committed.
    Due,
    /// The driver was asked.
    Asked,
    /// Nothing is waited for.
    Ready,
}

impl Readiness {
    pub(crate) fn at_first(await_ready: bool) -> Self {
        if await_ready { Self::Due } else { Self::Ready }
    }
}

impl Member {
    /// Asks the driver once this epoch could be served.
    pub(crate) fn close_readiness(&mut self) {
        let commit = self.commit;
        if let State::Primary(primary) = &mut self.state
            && primary.readiness == Readiness::Due
            && commit >= primary.start
        {
            primary.readiness = Readiness::Asked;
            let epoch = primary.epoch;
            self.out.push_back(Output::AwaitReady { epoch });
        }
    }

    /// The driver's answer. One for another epoch comes from a promotion that is over.
    pub(crate) fn handle_ready(&mut self, epoch: Epoch) {
        if let State::Primary(primary) = &mut self.state
            && primary.epoch == epoch
            && primary.readiness == Readiness::Asked
        {
            primary.readiness = Readiness::Ready;
        }
    }
}

#[cfg(test)]
mod tests {
    use mainstay_types::{
        Incarnation, Instance, Lineage, LogPoint, Lsn, Member as Registered, MemberKind, MonoTime,
        NodeId, Policy, PrimaryId, Register, RegisterId, VolumeKind, VolumeSpec,
    };

    use super::*;
    use crate::config::MemberConfig;
    use crate::member::{Input, MemberStart, Role};
    use crate::message::{MemberEnvelope, MemberMessage};
    use crate::runs::EpochRuns;

    const ME: PrimaryId = PrimaryId {
        node: NodeId(1),
        incarnation: Incarnation(7),
        instance: Instance(100),
    };
    const WITNESS: PrimaryId = PrimaryId {
        node: NodeId(9),
        incarnation: Incarnation(0),
        instance: Instance(4),
    };
    const LINEAGE: Lineage = Lineage(5);

    fn register(epoch: Epoch) -> Box<Register> {
        Box::new(Register {
            id: RegisterId(epoch.0),
            version: epoch.0,
            lineage: LINEAGE,
            log_lineage: LINEAGE,
            epoch,
            primary: ME,
            members: vec![Registered {
                node: ME.node,
                incarnation: ME.incarnation,
                kind: MemberKind::Full,
            }],
            ack_quorum: 1,
            policy: Policy::for_placement(vec![ME.node]),
            cut: LogPoint::ZERO,
            spec: VolumeSpec {
                name: "ledger".parse().expect("a good name"),
                kind: VolumeKind::Log,
            },
            deleted: false,
        })
    }

    /// The only copy of a volume, whose disk carries out every write at once.
    struct Alone {
        member: Member,
        asked: Vec<Epoch>,
        read: Vec<u64>,
        roles: Vec<Role>,
    }

    impl Alone {
        fn new(await_ready: bool) -> Self {
            let config = MemberConfig {
                await_ready,
                ..MemberConfig::default()
            };
            let start = MemberStart {
                me: ME,
                volume: register(Epoch(1)).spec.name.id(),
                lineage: LINEAGE,
                witnesses: std::sync::Arc::new(crate::WitnessSet::of(&[WITNESS.node])),
                log: EpochRuns::empty(LogPoint::ZERO),
                sealed: Epoch::ZERO,
                commit: Lsn::ZERO,
                doubt: None,
                damaged: false,
                rebuilding: false,
                seed: 1,
            };
            Self {
                member: Member::new(MonoTime(0), config, start),
                asked: Vec::new(),
                read: Vec::new(),
                roles: Vec::new(),
            }
        }

        fn handle(&mut self, input: Input) {
            self.member.handle(MonoTime(1), input);
            while let Some(output) = self.member.poll_output() {
                match output {
                    Output::Persist { op, .. } => {
                        self.member.handle(MonoTime(1), Input::Persisted(op));
                    }
                    Output::AwaitReady { epoch } => self.asked.push(epoch),
                    Output::ReadReady { id, .. } => self.read.push(id),
                    Output::Role(role) => self.roles.push(role),
                    _ => {}
                }
            }
        }

        fn hear(&mut self, body: MemberMessage) {
            self.handle(Input::Message(MemberEnvelope {
                volume: self.member.volume,
                lineage: LINEAGE,
                from: WITNESS,
                body,
            }));
        }

        /// Sealed and named for `epoch`, with a lease.
        fn promote(&mut self, epoch: Epoch) {
            self.hear(MemberMessage::Seal { epoch });
            self.hear(MemberMessage::Decided(register(epoch)));
            self.handle(Input::Lease {
                epoch,
                until: MonoTime::MAX,
                silent: Vec::new(),
            });
        }
    }

    #[test]
    fn a_primary_that_waits_serves_nothing_before_its_machine_is_ready() {
        let (mut copy, epoch) = (Alone::new(true), Epoch(1));
        copy.promote(epoch);
        assert_eq!(
            copy.asked,
            [epoch],
            "once, when its first entry is committed"
        );
        assert_eq!(copy.member.commit(), Lsn(1));
        assert_eq!(copy.member.role(), Role::Starting { epoch });
        copy.handle(Input::Propose { count: 1 });
        copy.handle(Input::Read { id: 3 });
        copy.handle(Input::Tick);
        assert_eq!(copy.member.last().lsn, Lsn(1), "nothing was taken in");
        assert_eq!(copy.read, Vec::<u64>::new());

        copy.handle(Input::Ready { epoch });
        assert_eq!(copy.member.role(), Role::Primary { epoch });
        assert_eq!(copy.read, [3], "what waited is served");
        copy.handle(Input::Propose { count: 1 });
        assert_eq!(copy.member.commit(), Lsn(2));
        assert_eq!(copy.asked, [epoch]);
        assert_eq!(
            copy.roles,
            [Role::Starting { epoch }, Role::Primary { epoch }]
        );
    }

    #[test]
    fn an_answer_for_another_epoch_is_ignored() {
        let mut copy = Alone::new(true);
        copy.promote(Epoch(1));
        copy.promote(Epoch(2));
        assert_eq!(copy.asked, [Epoch(1), Epoch(2)]);
        copy.handle(Input::Ready { epoch: Epoch(1) });
        assert_eq!(copy.member.role(), Role::Starting { epoch: Epoch(2) });
        copy.handle(Input::Ready { epoch: Epoch(3) });
        assert_eq!(copy.member.role(), Role::Starting { epoch: Epoch(2) });
        copy.handle(Input::Ready { epoch: Epoch(2) });
        assert_eq!(copy.member.role(), Role::Primary { epoch: Epoch(2) });
    }

    #[test]
    fn without_hooks_nothing_is_asked() {
        let (mut copy, epoch) = (Alone::new(false), Epoch(1));
        copy.promote(epoch);
        assert_eq!(copy.member.role(), Role::Primary { epoch });
        assert_eq!(copy.asked, Vec::<Epoch>::new());
    }
}
