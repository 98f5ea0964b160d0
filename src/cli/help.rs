//! The examples under every command's `--help`: the part of help that people read first.

pub(crate) const TOP: &str = "\
Examples:
  flockwork up                              start three nodes here; then, in another terminal:
  flockwork run -- echo hello               submit, follow the output, exit as the job did
  flockwork submit --retries 3 -- ./job.sh  submit, print the id, go on
  flockwork ps                              what runs, what has run
  flockwork demo                            see a node die and no job be lost

  flockwork node --name a                                     a cluster over several machines:
  flockwork node --name b --seed a.example:7071               the address of any other node will do

Exit codes: 0 done; the job's own for run and wait; 1 failed otherwise; 2 usage; 3 not found; 4 refused;
5 no node reachable; 6 accepted below the asked durability; 124 timed out; 125 flockwork's own failure;
126, 127 as a shell has them; 130 cancelled.
Settings: flag, else environment variable, else settings file, else default; `flockwork config show`.";

pub(crate) const UP: &str = "\
Examples:
  flockwork up                       three nodes, data in a temporary folder
  flockwork up --nodes 5 --slots 2   five nodes that run two jobs each side by side
  flockwork up --dir ~/cluster       keep the data, and go on with it the next time
  flockwork up --nodes 5 --enable-fault-injection
                                     a cluster to be cut in two: see `flockwork cut --help`

While it runs, other commands of this user find it without --addr, unless a node answers at the default port.";

pub(crate) const DEMO: &str = "\
Examples:
  flockwork demo             three nodes, sixty jobs, one node killed in the middle
  flockwork demo --jobs 200  more of them

Exits with 0 only if no acknowledged job was lost and every output is right.";

pub(crate) const NODE: &str = "\
Examples:
  flockwork node                                      on loopback, for this machine
  flockwork node --name b --http 127.0.0.1:7080 --listen 127.0.0.1:7081 \\
                 --data-dir /tmp/b --seed 127.0.0.1:7071
                                                      a second one beside it
  flockwork node --listen 10.0.0.5:7071 --http 10.0.0.5:7070 --insecure --seed 10.0.0.6:7071
                                                      on a network that keeps everybody else out
  flockwork node -o json                              one JSON line when ready, for scripts

SIGTERM or Ctrl-C lets it leave properly; a second one ends it at once. FLOCKWORK_LOG=debug says more.";

pub(crate) const RUN: &str = "\
Examples:
  flockwork run -- make test                    as if here; Ctrl-C cancels it, twice leaves it running
  flockwork run --cpus 2 --mem 4GiB -- ./train  set resources aside
  flockwork run --stdin data.csv -- sort -u     its input comes from here
  flockwork run --timeout 10m --retries 2 --backoff 5s -- ./flaky.sh
  flockwork run --require disk=ssd -- ./index   only on nodes started with --label disk=ssd
  flockwork run --dry-run -- echo hi            print the spec, submit nothing

Exit code: the job's own; 128 and the signal's number; 124 timed out; 130 cancelled.";

pub(crate) const SUBMIT: &str = "\
Examples:
  flockwork submit -- ./nightly.sh                     print the id and go on
  flockwork submit --key nightly-2026-11-21 -- ./x     however often it is said, one job
  ls *.wav | flockwork submit -a - -- flac {}          one job for each line
  flockwork submit -a urls.txt --name 'get {#}' --wait -- curl -sO {}
  flockwork submit --file specs.ndjson                 one spec a line, as --dry-run prints them
  id=$(flockwork submit -- sleep 9) && flockwork wait $id

A job without --key is given a random key, so that a submit whose answer was lost is repeated safely.";

pub(crate) const PS: &str = "\
Examples:
  flockwork ps                                  the newest fifty
  flockwork ps --state failed --all             every failed one
  flockwork ps --node node-2                    what node-2 runs or ran
  flockwork ps --state running -o id | xargs flockwork cancel";

pub(crate) const JOB: &str = "\
Examples:
  flockwork job last       the newest that was submitted from here
  flockwork job 3f2a       the beginning of an id will do where it is unique
  flockwork job last -o json";

pub(crate) const LOGS: &str = "\
Examples:
  flockwork logs last                    what it has written so far
  flockwork logs -f 3f2a                 go on until it has ended
  flockwork logs --stream stderr last
  flockwork logs --attempt all last      of every attempt, from the first
  flockwork logs -o jsonl last           pieces, with stream, attempt and offset";

pub(crate) const WAIT: &str = "\
Examples:
  flockwork wait last                        exit as the job did
  flockwork wait 3f2a 90bc                   0 if all succeeded, 1 otherwise
  flockwork wait --timeout 10m last          124 if it has not ended by then";

pub(crate) const CANCEL: &str = "\
Examples:
  flockwork cancel last
  flockwork cancel --reason 'wrong input' 3f2a 90bc";

pub(crate) const RETRY: &str = "\
Examples:
  flockwork retry 3f2a                       print the new job's id
  flockwork wait $(flockwork retry last)";

pub(crate) const WHERE: &str = "\
Examples:
  flockwork where last                       its partition, owner, replicas and executor";

pub(crate) const EXPLAIN: &str = "\
Examples:
  flockwork explain last                     what it waits for, and what speaks against each node";

pub(crate) const NODES: &str = "\
Examples:
  flockwork nodes
  flockwork nodes --addr 127.0.0.1:7080      as this node sees them
  flockwork nodes -o json";

pub(crate) const DRAIN: &str = "\
Examples:
  flockwork drain node-2                     before it is taken away; done when all is handed over
  flockwork drain node-2 --deadline 10m      exit code 1 if that takes longer; it goes on draining
  flockwork drain node-2 --no-wait           do not wait at all
  flockwork undrain node-2                   it stays after all";

pub(crate) const IMPACT: &str = "\
Examples:
  flockwork impact node-2                    before it is stopped: what runs there, and who else has what it keeps
  flockwork impact node-2 -o json            `safe` is true where nothing would be lost or wait for it";

pub(crate) const FORGET: &str = "\
Examples:
  flockwork forget node-2                    its machine is gone for good

A node that is down keeps its places on the ring until `forget_after` (a day, unless set), since it may come back with
what it keeps. Forgetting it gives them to others at once. One that comes back nevertheless joins anew. A node that is
alive is not forgotten: drain it, and stop it.";

pub(crate) const CUT: &str = "\
Examples:
  flockwork up --nodes 5 --enable-fault-injection         then, in another terminal:
  flockwork cut node-1 node-2                             these two on one side, the other three on the other
  flockwork submit --addr 127.0.0.1:40001 -- sleep 60     both sides take jobs; `cut` says where
  flockwork heal                                          one network again
  flockwork merges                                        who was away, and what ran twice

Only nodes that were started with --enable-fault-injection do it, which no node is that does real work. They drop what
they would send to the other side or have from there; clients still reach all of them.";

pub(crate) const MERGES: &str = "\
Examples:
  flockwork merges                           after a network was cut in two, and healed
  flockwork merges -o json";

pub(crate) const DEBUG: &str = "\
Examples:
  flockwork debug                            exit code 0 if the nodes agree, 1 if not
  flockwork debug --watch                    again every second
  flockwork debug --addr 127.0.0.1:7080      as this node sees it";

pub(crate) const COMPLETIONS: &str = "\
Examples:
  flockwork completions bash > ~/.local/share/bash-completion/completions/flockwork
  flockwork completions zsh > ~/.zfunc/_flockwork
  flockwork completions fish > ~/.config/fish/completions/flockwork.fish";

pub(crate) const CONFIG: &str = "\
Examples:
  flockwork config show                      a settings file with every value, and where it comes from
  flockwork config show --slots 4            what `flockwork node --slots 4` would use
  flockwork config show > ~/.config/flockwork/config.toml";

pub(crate) const POD: &str = "\
Examples, in a job's script:
  flockwork pod progress 0.4 'second pass'
  flockwork pod checkpoint state.json         saved on other nodes too when this returns
  if [ -e \"$FLOCKWORK_CHECKPOINT_FILE\" ]; then cp \"$FLOCKWORK_CHECKPOINT_FILE\" state.json; fi
  echo 42 | flockwork pod result -            the same of what it comes to, which is shown while it runs
  echo 42 > \"$FLOCKWORK_RESULT_FILE\"          read when the job ends
  flockwork run --heartbeat-timeout 1m -- ./job.sh, which says `flockwork pod heartbeat` in its loop

Without this program: POST $FLOCKWORK_POD_URL?kind=heartbeat, progress, checkpoint or result, with the header
Authorization: Bearer $FLOCKWORK_POD_TOKEN; progress takes {\"fraction\": 0.4, \"message\": \"...\"}.";
