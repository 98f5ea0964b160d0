use crate::model::{config::Config, id::NodeId, member::*, time::*, wire::Probe};
use std::net::SocketAddr;
use std::time::Duration;
#[derive(Debug)]
pub struct Membership;
impl Membership {
    pub fn new(now: Now, config: &Config, me: Facts, remembered: Vec<Facts>, seed: u64) -> Self {
        todo!()
    }
    pub fn handle_facts(&mut self, now: Now, facts: Vec<Facts>) {
        todo!()
    }
    pub fn handle_probe(&mut self, now: Now, from_addr: SocketAddr, probe: Probe, by_link: bool) {
        todo!()
    }
    pub fn handle_refused(&mut self, now: Now, node: NodeId) {
        todo!()
    }
    pub fn handle_link_up(&mut self, now: Now, node: NodeId) {
        todo!()
    }
    pub fn handle_heard(&mut self, now: Now, node: NodeId) {
        todo!()
    }
    pub fn handle_timeout(&mut self, now: Now) {
        todo!()
    }
    pub fn poll_timeout(&self) -> Option<Moment> {
        todo!()
    }
    pub fn poll_output(&mut self) -> Option<MembershipOutput> {
        todo!()
    }
    pub fn set_status(&mut self, now: Now, status: Status) {
        todo!()
    }
    pub fn view(&self) -> &View {
        todo!()
    }
    pub fn view_epoch(&self) -> u64 {
        todo!()
    }
    pub fn me(&self) -> &Facts {
        todo!()
    }
    pub fn update_own(&mut self, f: impl FnOnce(&mut Facts)) {
        todo!()
    }
    pub fn update_load(&mut self, n: NodeId, l: Load) {
        todo!()
    }
    pub fn conflict(&self) -> Option<String> {
        todo!()
    }
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        todo!()
    }
    pub fn remembered(&self) -> Vec<Facts> {
        todo!()
    }
}
pub enum MembershipOutput {
    Probe { to: NodeId, addr: SocketAddr, probe: Probe, by_link: bool },
    OwnFactsChanged { urgent: bool },
    MemberChanged { node: NodeId, was: Option<MemberState>, reason: String },
    Forgotten { node: NodeId },
    LateTick { by: Duration },
}
