//! What deleting changes: softly first, for good after.

use super::{Registry, Shown, Version, Which, not_found, version_not_found};
use crate::change::Change;
use crate::error::{Code, Refusal};
use crate::subject::{Prefix, Subject};

impl Registry {
    /// The numbers deleted, and how.
    pub(crate) fn plan_delete_subject(
        &self,
        subject: &Subject,
        permanent: bool,
    ) -> Result<(Vec<u32>, Vec<Change>), Refusal> {
        self.may_change(subject)?;
        let all = self.versions(subject, Shown::All)?;
        let live: Vec<Version> = all.iter().filter(|version| !version.deleted).copied().collect();
        let doomed = match (permanent, live.is_empty()) {
            (false, true) => {
                let message = format!("Subject '{subject}' was soft deleted.Set permanent=true to delete permanently");
                return Err(Refusal::new(Code::SubjectSoftDeleted, message));
            }
            (true, false) => {
                let message = format!("Subject '{subject}' was not deleted first before being permanently deleted");
                return Err(Refusal::new(Code::SubjectNotSoftDeleted, message));
            }
            (false, false) => live,
            (true, true) => all,
        };
        for version in &doomed {
            self.may_go(subject, *version, permanent, Some(subject))?;
        }
        let mut changes: Vec<Change> = doomed.iter().map(|version| change(subject, *version, permanent)).collect();
        if permanent {
            self.forget_settings(subject, &mut changes);
        }
        Ok((doomed.iter().map(|version| version.version).collect(), changes))
    }

    /// The number deleted, and how.
    pub(crate) fn plan_delete_version(
        &self,
        subject: &Subject,
        which: Which,
        permanent: bool,
    ) -> Result<(u32, Vec<Change>), Refusal> {
        self.may_change(subject)?;
        let all = self.all(subject.as_str());
        if all.is_empty() {
            return Err(not_found(subject));
        }
        let found = match which {
            Which::Number(number) => self.number(subject.as_str(), number),
            Which::Latest if permanent => all.last().copied(),
            Which::Latest => all.iter().rfind(|version| !version.deleted).copied(),
        };
        let found = found.ok_or_else(|| version_not_found(which))?;
        let number = found.version;
        if found.deleted && !permanent {
            let message = format!(
                "Subject '{subject}' Version {number} was soft deleted.Set permanent=true to delete permanently"
            );
            return Err(Refusal::new(Code::VersionSoftDeleted, message));
        }
        if !found.deleted && permanent {
            let message =
                format!("Subject '{subject}' Version {number} was not deleted first before being permanently deleted");
            return Err(Refusal::new(Code::VersionNotSoftDeleted, message));
        }
        self.may_go(subject, found, permanent, None)?;
        let mut changes = vec![change(subject, found, permanent)];
        if permanent && all.len() == 1 {
            self.forget_settings(subject, &mut changes);
        }
        Ok((number, changes))
    }

    /// What is referred to stays: by a schema in use, or (for good) by any.
    /// `leaving` goes as a whole: what its own versions refer to does not count.
    fn may_go(
        &self,
        subject: &Subject,
        version: Version,
        permanent: bool,
        leaving: Option<&Subject>,
    ) -> Result<(), Refusal> {
        let key = (subject.shared(), version.version);
        let shown = Shown::with_deleted(permanent);
        for (context, id) in self.referrers.get(&key).into_iter().flatten() {
            let uses = self.uses(context, *id, shown).unwrap_or_default();
            if uses.iter().any(|(user, _)| leaving.is_none_or(|leaving| leaving.as_str() != *user)) {
                let number = version.version;
                let message = format!(
                    "One or more references exist to the schema {{magic=1,keytype=SCHEMA,subject={subject},version={number}}}."
                );
                return Err(Refusal::new(Code::ReferenceExists, message));
            }
        }
        Ok(())
    }

    fn forget_settings(&self, subject: &Subject, changes: &mut Vec<Change>) {
        let scope = subject.shared();
        if self.configs.contains_key(&scope) {
            changes.push(Change::Config { scope: scope.clone(), config: None });
        }
        if self.modes.contains_key(&scope) {
            changes.push(Change::Mode { scope, mode: None });
        }
    }

    /// Takes a context without subjects from the list.
    pub(crate) fn plan_delete_context(&self, context: &str) -> Result<Vec<Change>, Refusal> {
        let scope = Subject::of(context, "");
        if !self.subjects(&Prefix::new(&format!(":{}:", scope.context())), Shown::All).is_empty() {
            let message = format!("The specified context '{}' is not empty.", scope.context());
            return Err(Refusal::new(Code::ContextNotEmpty, message));
        }
        let mut changes = vec![Change::Unlisted { context: scope.context().into() }];
        self.forget_settings(&scope, &mut changes);
        Ok(changes)
    }
}

fn change(subject: &Subject, version: Version, permanent: bool) -> Change {
    let subject = subject.shared();
    let Version { version, id, .. } = version;
    if permanent { Change::Gone { subject, version } } else { Change::Version { subject, version, id, deleted: true } }
}
