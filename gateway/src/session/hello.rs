//! The first frame of a session: who is it, does it speak our language, and does it belong here?

use std::borrow::Cow;
use std::time::Duration;

use protocol::agent::{GatewayMessage, Hello, Welcome};
use protocol::close::CloseCode;
use protocol::limits::AGENT_KEEP_ALIVE;
use protocol::link::{SessionUp, Target};
use protocol::version::SUPPORTED;

use super::{LINGER, Output, Session, State, Surroundings, Violation};
use crate::group::Admission;

/// How long an agent waits before it follows a redirect to a gateway that is known.
const REDIRECT_PAUSE: Duration = Duration::ZERO;
/// The same where no owner is known yet: somebody will have taken the group by then.
const NO_OWNER_PAUSE: Duration = Duration::from_secs(5);

impl Session {
    pub(super) fn handle_hello(
        &mut self,
        hello: Hello,
        around: &Surroundings<'_>,
        out: &mut Vec<Output>,
    ) -> Result<(), Violation> {
        let State::AwaitHello(identity) = &self.state else {
            return Err(Violation::new(
                CloseCode::UnexpectedFrame,
                "Hello is said once",
            ));
        };
        if hello.agent != identity.agent {
            return Err(Violation::new(
                CloseCode::IdentityMismatch,
                "Hello names another agent than the certificate",
            ));
        }
        let version = SUPPORTED
            .negotiate(hello.versions)
            .map_err(|error| Violation {
                code: CloseCode::VersionMismatch,
                detail: Cow::Owned(error.to_string()),
            })?;
        if around.draining {
            return Err(Violation::new(CloseCode::Draining, ""));
        }
        match around.directory.admit(identity.agent, &identity.key) {
            Admission::NotPinned => Err(Violation::new(CloseCode::KeyNotPinned, "")),
            Admission::Revoked => Err(Violation::new(CloseCode::Revoked, "")),
            Admission::Redirect(addresses) => {
                let addresses = addresses.to_vec();
                self.redirect(addresses, around, out);
                Ok(())
            }
            Admission::Admit { target, epoch } => {
                let welcome = Welcome {
                    version,
                    session: self.id,
                    group: target.group,
                    slot: target.slot,
                    epoch,
                    keep_alive: AGENT_KEEP_ALIVE,
                    reconnect_spread: around.reconnect_spread,
                    addresses: around.advertise.to_vec(),
                };
                self.say(&GatewayMessage::Welcome(Box::new(welcome)), out);
                self.go_up(target, hello, around, out);
                Ok(())
            }
        }
    }

    fn go_up(
        &mut self,
        target: Target,
        hello: Hello,
        around: &Surroundings<'_>,
        out: &mut Vec<Output>,
    ) {
        #[cfg(test)]
        assert_ne!(
            hello.hostname,
            super::fake::PANIC_HOSTNAME,
            "a test asked for this"
        );
        self.state = State::Up;
        hello
            .open
            .iter()
            .for_each(|open| self.given.insert(open.operation));
        out.push(Output::Up {
            up: Box::new(SessionUp {
                target,
                session: self.id,
                shard: around.shard,
                at_home: target.slot.home(around.shards) == around.shard,
                remote: around.remote,
                capacity: hello.capacity,
                kinds: hello.kinds,
                open: hello.open,
                hostname: hello.hostname,
                software: hello.software,
                labels: hello.labels,
            }),
            session_count: hello.session_count,
        });
    }

    fn redirect(
        &mut self,
        addresses: Vec<String>,
        around: &Surroundings<'_>,
        out: &mut Vec<Output>,
    ) {
        let retry_after = if addresses.is_empty() {
            NO_OWNER_PAUSE
        } else {
            REDIRECT_PAUSE
        };
        self.say(
            &GatewayMessage::Redirect {
                addresses,
                retry_after,
            },
            out,
        );
        self.state = State::Leaving(CloseCode::Redirected);
        self.end_by(around.now + LINGER, CloseCode::Redirected);
    }
}
