//! What the tables hold, and the names of some of it.

use runtara_domain::{Caller, Fence, InstanceId, TenantId, TokenHash};

pub(crate) const FILL: &str = "
    insert into runtara_instances
           (instance_id, tenant_id, image_id, runner_kind, origin, status, reason, due_at, live_node, token_hash, run_number,
            spoke, timeout_ms, created_at, started_at, finished_at, event_seq)
    select 'n-' || lpad(n::text, 6, '0'), 't-' || n % 40, 'image-' || n % 100, 'native', 'launched',
           s.status, null,
           case s.status when 'suspended' then 4000000000000 + n when 'pending' then n end,
           case s.status when 'running' then '00000000-0000-0000-0000-00000000000' || n % 10 end,
           case s.status when 'running' then sha256(n::text::bytea) end,
           1, true, 1000, 1600000000000 + n * 1000, 1600000000000 + n * 1000,
           case when s.status in ('completed', 'failed') then 1600000000000 + n * 1000 + 500 end, 1
      from generate_series(1, 120000) n
     cross join lateral (select case when n % 100 < 60 then 'completed' when n % 100 < 65 then 'failed'
                                     when n % 100 < 95 then 'suspended' when n % 100 < 97 then 'running'
                                     else 'pending' end as status) s;
    insert into runtara_instances (instance_id, tenant_id, origin, status, timeout_ms, created_at)
    values ('long', 'others', 'self_registered', 'running', 1000, 1), ('rare', 'others', 'self_registered', 'running', 1000, 1);
    insert into runtara_instance_labels
    select 'n-' || lpad(n::text, 6, '0'), 'batch', (n / 50)::text from generate_series(1, 120000) n;
    insert into runtara_instance_inputs
    select 'n-' || lpad(n::text, 6, '0'), '{}' from generate_series(1, 120000) n;
    insert into runtara_checkpoints (instance_id, seq, checkpoint_id, version, state, size, created_at, run_number)
    select 'n-' || lpad(n::text, 6, '0'), 1, 'first', 1, 'state', 5, 1, 1 from generate_series(1, 120000) n;
    insert into runtara_checkpoints (instance_id, seq, checkpoint_id, version, state, size, created_at, run_number)
    select 'long', n, 'step-' || n, 1, 'state', 5, n, 1 from generate_series(1, 30000) n;
    insert into runtara_events (instance_id, seq, kind, created_at, run_number)
    select 'n-' || lpad(n::text, 6, '0'), 1, 'started', 1, 1 from generate_series(1, 120000) n;
    insert into runtara_events
           (instance_id, seq, kind, subtype, payload, created_at, run_number, scope_id, parent_scope_id, step_id, step_key, step_failed)
    select 'long', n, 'custom', case n % 3 when 0 then 'scope_enter' when 1 then 'step_debug_start' else 'step_debug_end' end,
           '{}', n, 1, 'scope-' || n / 3, 'scope-' || n / 3 - 1,
           case when n % 3 > 0 then 'step-' || n / 3 end, case when n % 3 > 0 then 'step-' || n / 3 end,
           case when n % 3 = 2 then false end
      from generate_series(1, 30000) n;
    insert into runtara_events
           (instance_id, seq, kind, subtype, payload, created_at, run_number, parent_scope_id, step_id, step_type, step_key, step_failed)
    select 'rare', n, case when n % 10000 = 3 then 'failed' else 'custom' end,
           case n % 3 when 1 then 'step_debug_start' when 2 then 'step_debug_end' end, '{}', n, 1,
           case when n % 10000 = 5 then 'parent' end, case when n % 3 > 0 then 'step-' || n / 3 end,
           case when n % 9999 = 1 then 'rare' else 'usual' end, case when n % 3 > 0 then 'step-' || n / 3 end,
           case when n % 3 = 2 then n % 9999 = 2 end
      from generate_series(1, 30000) n;
    insert into runtara_waits
    select 'n-' || lpad(n::text, 6, '0'), 'sleep', '', 1, 5, sha256('x'), 1, null from generate_series(1, 120000) n;
    insert into runtara_signals
    select 'n-' || lpad(n::text, 6, '0'), 'go', 1, null, null, null from generate_series(1, 120000) n where n % 7 = 0;
    insert into runtara_images (image_id, tenant_id, name, kind, digest, base, size, created_at)
    select 'image-' || n, 't-' || n % 40, 'name-' || n, 'native', sha256(n::text::bytea), sha256(n::text::bytea), 1, n
      from generate_series(0, 9999) n;
    analyze;
";

pub(crate) fn id(n: usize) -> InstanceId {
    InstanceId::new(format!("n-{n:06}")).unwrap()
}

/// The n-th of the running instances, as its run speaks for it.
pub(crate) fn running(n: usize) -> (usize, InstanceId, Fence) {
    let n = n * 100 + 95;
    (n, id(n), Fence::Run(token(n)))
}

pub(crate) fn token(n: usize) -> TokenHash {
    let digest = runtara_domain::ImageDigest::of(n.to_string().as_bytes());
    TokenHash(digest.0)
}

pub(crate) fn caller(n: usize) -> Caller {
    let (_, instance_id, fence) = running(n);
    Caller { instance_id, fence }
}

pub(crate) fn tenant() -> TenantId {
    TenantId::new("t-7").unwrap()
}
