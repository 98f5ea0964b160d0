// The page for people. It reads the same routes as everybody else and keeps what it shows up to date: an event
// says that something changed, and what changed is then read anew, so that a missed event only costs time.
"use strict";

const JOBS_SHOWN = 50;
const EVENTS_SHOWN = 30;
const LOG_CHARACTERS_SHOWN = 200_000;
const REFRESH_AFTER_EVENT_MS = 250;
const REFRESH_ALWAYS_MS = 10_000;

const TONES = {
  alive: "good", suspect: "warn", draining: "warn", down: "bad", left: "quiet",
  pending: "warn", running: "busy", succeeded: "good", failed: "bad", cancelled: "quiet",
};

const byId = (id) => document.getElementById(id);

// Text only ever becomes text: what jobs and nodes are called is not ours.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value);
  }
  made.append(...children.map((child) => child ?? ""));
  return made;
}

const cell = (content, kind = "") => element("td", kind ? { class: kind } : {}, content);
const badge = (word) => element("span", { class: "badge", "data-tone": TONES[word] ?? "quiet" }, word);
const clock = (time) => (time ? new Date(time).toLocaleTimeString() : "");

function rows(body, list, columns, empty) {
  const none = element("tr", {}, element("td", { class: "empty", colspan: String(columns) }, empty));
  byId(body).replaceChildren(...(list.length ? list : [none]));
}

async function read(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error?.message ?? answer.statusText);
  return body;
}

function showConvergence(seen) {
  const members = Object.values(seen.members);
  const live = members.filter((member) => ["alive", "suspect", "draining"].includes(member.state)).length;
  const { total, in_sync: inSync } = seen.partitions;
  const tile = (value, label, tone) =>
    element("div", { class: "tile", ...(tone ? { "data-tone": tone } : {}) }, element("b", {}, value), element("span", {}, label));
  byId("convergence").replaceChildren(
    tile(seen.converged ? "converged" : "not yet", `since ${clock(seen.since)}`, seen.converged ? "good" : "warn"),
    tile(`${live} of ${members.length}`, "members live", live === members.length ? "good" : "warn"),
    tile(seen.ring.agree ? "one" : "several", seen.ring.agree ? "ring, the same for all" : "rings: views differ", seen.ring.agree ? "good" : "warn"),
    tile(`${inSync} of ${total}`, "partitions in sync here", inSync < total ? "warn" : "good"),
    tile(String(seen.strays), "records to hand on", seen.strays ? "warn" : "good"),
  );
}

function showNodes({ nodes }) {
  const self = nodes.find((node) => node.is_self);
  byId("self").textContent = self ? `as ${self.name} (${self.id}) sees it` : "";
  rows("nodes", nodes.map((node) => element("tr", {},
    cell(node.is_self ? element("b", {}, node.name) : node.name),
    cell(badge(node.state)),
    cell(`${node.slots.used} of ${node.slots.total}`),
    cell(String(node.backlog)),
    cell(`${Math.round(node.load.cpu * 100)} %`),
    cell(Object.entries(node.labels).map(([name, value]) => `${name}=${value}`).join(" "), "wide"),
    cell(node.addresses.http, "mono"),
    cell(node.version),
  )), 8, "none");
}

function showJobs({ jobs, partial, missing }) {
  byId("partial").hidden = !partial;
  byId("partial").textContent = partial ? `Some jobs may be missing: ${missing.join(", ")} could not be asked.` : "";
  rows("jobs", jobs.map((job) => element("tr", { "data-id": job.id, onclick: () => { location.hash = job.id; } },
    cell(element("button", { class: "link", type: "button" }, job.id.slice(0, 8))),
    cell(job.name ?? (job.spec.handler || (job.spec.command ?? []).join(" ")).slice(0, 80), "wide"),
    cell(badge(job.state)),
    cell(job.reason, "wide"),
    cell(String(job.attempts.length + (job.attempts_omitted ?? 0))),
    cell(new Date(job.submitted_at).toLocaleString()),
  )), 6, "No jobs yet. Submit one: flockwork run -- echo hello");
}

let openId = null;
let logReading = new AbortController();

async function openJob(id) {
  openId = id;
  byId("job-title").textContent = id;
  byId("job-reason").textContent = "";
  byId("job-log").textContent = "";
  byId("job-attempts").replaceChildren();
  if (!byId("job").open) byId("job").showModal();
  await Promise.all([refreshJob(), followLog(id)]);
}

// Read once and followed from there: a log may be large, and only its end is kept here.
async function followLog(id) {
  logReading.abort();
  logReading = new AbortController();
  const { signal } = logReading;
  let shown = "";
  try {
    const answer = await fetch(`/v1/jobs/${id}/logs?follow&attempt=all`, { signal });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      shown += part.value;
      if (shown.length > LOG_CHARACTERS_SHOWN) shown = `…${shown.slice(-LOG_CHARACTERS_SHOWN)}`;
      byId("job-log").textContent = shown;
    }
    if (!shown) byId("job-log").textContent = "nothing written";
  } catch (error) {
    if (!signal.aborted) byId("job-log").textContent = `${shown}\n[the rest cannot be read: ${error.message}]`;
  }
}

async function refreshJob() {
  const id = openId;
  if (!id) return;
  try {
    const job = await read(`/v1/jobs/${id}`);
    if (openId !== id) return;
    byId("job-title").textContent = `${job.name ?? (job.spec.command ?? []).join(" ")} · ${id}`;
    byId("job-reason").replaceChildren(badge(job.state), ` ${job.reason} (${job.replicas.agree} of ${job.replicas.of} replicas agree)`);
    rows("job-attempts", job.attempts.map((attempt) => element("tr", {},
      cell(String(attempt.number)), cell(attempt.node_name), cell(attempt.phase),
      cell(clock(attempt.started_at)), cell(clock(attempt.ended_at)),
      cell(attempt.reason + attempt.overlaps.map((other) => ` [${other.certain ? "overlaps" : "may overlap"} ${other.number}]`).join(""), "wide"),
    )), 6, "none yet");
  } catch (error) {
    if (openId === id) byId("job-reason").textContent = error.message;
  }
}

const happened = [];

function note(text, at) {
  happened.unshift(element("li", {}, element("time", {}, clock(at)), text));
  happened.length = Math.min(happened.length, EVENTS_SHOWN);
  byId("events").replaceChildren(...happened);
}

// At most one refresh under way, and at most one waiting: a storm of events costs no more than a steady pace.
let waiting = null;
let busy = false;

function refreshSoon() {
  waiting ??= setTimeout(refresh, REFRESH_AFTER_EVENT_MS);
}

async function refresh() {
  waiting = null;
  if (busy) return refreshSoon();
  busy = true;
  refreshJob();
  try {
    const [nodes, seen, jobs] = await Promise.all([
      read("/v1/nodes"), read("/debug/convergence"), read(`/v1/jobs?limit=${JOBS_SHOWN}`),
    ]);
    showNodes(nodes);
    showConvergence(seen);
    showJobs(jobs);
  } catch (error) {
    byId("self").textContent = `the node does not answer: ${error.message}`;
  } finally {
    busy = false;
  }
}

function setLive(word, tone) {
  byId("live").textContent = word;
  byId("live").dataset.tone = tone;
}

const events = new EventSource("/v1/events");
events.addEventListener("open", () => { setLive("live", "good"); refreshSoon(); });
events.addEventListener("error", () => setLive("reconnecting", "warn"));
events.addEventListener("lagged", refreshSoon);
events.addEventListener("member", ({ data }) => {
  const event = JSON.parse(data);
  note(`${event.name} is ${event.state}${event.reason ? `: ${event.reason}` : ""}`, event.at);
  refreshSoon();
});
events.addEventListener("job", ({ data }) => {
  const event = JSON.parse(data);
  note(`${event.title.slice(0, 60)} (${event.id.slice(0, 8)}) is ${event.state}${event.reason ? `: ${event.reason}` : ""}`, event.at);
  refreshSoon();
});
// The open job is in the address, so that it can be passed on.
function openFromAddress() {
  const id = location.hash.slice(1);
  if (/^[0-9a-f]{4,32}$/.test(id)) openJob(id);
}

byId("job").addEventListener("close", () => {
  openId = null;
  logReading.abort();
  history.replaceState(null, "", location.pathname);
});
addEventListener("hashchange", openFromAddress);
openFromAddress();
setInterval(refreshSoon, REFRESH_ALWAYS_MS);
refresh();
