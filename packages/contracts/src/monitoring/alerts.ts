/**
 * Alerts, each with its section of the runbook: `make generate` writes them to the chart and to docs/runbook.md. Every one names a state
 * that somebody has to mend, and fires by a fault in tests/monitoring.
 */

interface Alert {
  name: string;
  /** PromQL. `NS` stands for the selector of the release's namespace. */
  expr: string;
  for: string;
  severity: "critical" | "warning";
  /** One line, with the labels of the series. */
  summary: string;
  /** What users feel, and what is safe meanwhile. */
  means: string;
  /** What to look at, in this order, and what then mends it. */
  mend: readonly string[];
}

/** Of a counter, which may begin with 1: `increase` would not see that. */
const grewOrBegan = (by: string, series: string, window: string): string => {
  const [now, before] = [`sum by (${by}) (${series})`, `sum by (${by}) (${series} offset ${window})`];
  return `(${now} - ${before}) > 0 or (${now} unless ${before})`;
};

export const alerts: readonly Alert[] = [
  {
    name: "LoralineEngineDown",
    expr: 'max by (namespace, engine, base) (loraline_engine_replicas{NS,state="ready"}) == 0 unless on (namespace, engine) min by (namespace, engine) (loraline_engine_asleep{NS}) == 1',
    for: "1m",
    severity: "critical",
    summary: "Engine {{ $labels.engine }} ({{ $labels.base }}) has no ready replica: its models answer 503",
    means:
      "Chats with the base and its adapters get 503 `model_not_ready`, and `Retry-After` says how long the last outage took. Training goes on; new versions wait to be proven. Nothing is lost.",
    mend: [
      "`kubectl get pods -l app.kubernetes.io/component=engine`: Pending? `describe pod` names what is missing (GPU, quota, volume).",
      "Restarts? `kubectl logs POD -c vllm --previous`, and the last state of the init container `check`, which names settings that cannot work.",
      "Running and not ready? `kubectl port-forward POD 8081` and `/readyz`: versions that are not proven yet, or a code such as `ENGINE_KEY_REFUSED` or `TEMPLATE_MISMATCH`.",
      "All ready? The gateways do not hear of them: `loraline_nats_up`, and `REPLICA_URL_REFUSED` in `loraline engines`.",
      "Scaled to zero by `wake`, and a request has waited for it in vain: its Deployment says `replicas: 0`? The operator's log says why (`engines.wake`); it hears of waiting requests from the gateways.",
      "Scaled to zero by hand: silence it, or switch it off with `monitoring.rules.alerts`.",
    ],
  },
  {
    name: "LoralineRequestsFailing",
    expr: 'sum by (namespace) (rate(loraline_gateway_http_requests_total{NS,code=~"5.."}[5m])) / sum by (namespace) (rate(loraline_gateway_http_requests_total{NS}[5m])) > 0.05',
    for: "5m",
    severity: "critical",
    summary: "{{ $value | humanizePercentage }} of the gateway's answers are errors of ours (5xx)",
    means: "Clients are refused. The dashboard *Loraline / line* shows which error codes, tenants and models.",
    mend: [
      '`sum by (error, model) (rate(loraline_gateway_http_requests_total{code=~"5.."}[5m]))`: the code says what it is, `loraline explain CODE` what to do.',
      "`model_not_ready`: see LoralineEngineDown. `bus_unavailable`: LoralineNatsDown. `STORE_FULL`, 507: LoralineStoreFilling. `engine_timeout`: LoralineSlow.",
      "`internal_error`: a fault of the gateway. Its log has it at level error with the request's id.",
    ],
  },
  {
    name: "LoralineSlow",
    expr: "histogram_quantile(0.95, sum by (namespace, base, le) (rate(loraline_gateway_first_byte_seconds_bucket{NS}[5m]))) > 10",
    for: "10m",
    severity: "warning",
    summary: "A twentieth of the requests to {{ $labels.base }} wait more than 10 s for the first byte",
    means: "Engines have more to do than they can. Nothing fails yet.",
    mend: [
      "Dashboard *Loraline / engines and adapters*: requests that wait in vLLM, KV cache use, adapters for each slot.",
      "More replicas of the engine, or more slots (`maxLoras`) where adapters push each other out; or [limits](gateway.md#limits) for the tenant that asks most.",
    ],
  },
  {
    name: "LoralineGatewayBusy",
    expr: "max by (namespace, pod) (loraline_gateway_waiting_turn{NS}) > 0",
    for: "10m",
    severity: "warning",
    summary: "Gateway {{ $labels.pod }} has no time left: requests of busy tenants wait for their turn",
    means: "Tenants with many requests under way wait, the others do not notice.",
    mend: ["More gateways (`gateway.replicas`, `gateway.autoscaling`), or limits for the tenant."],
  },
  {
    name: "LoralineEngineProblem",
    expr: "max by (namespace, engine, base, code) (loraline_engine_problem{NS}) == 1",
    for: "5m",
    severity: "critical",
    summary: "Nothing new is made for engine {{ $labels.engine }}: {{ $labels.code }}",
    means: "Runs for the base are refused or wait; replicas that run serve on.",
    mend: [
      "`loraline engines` says why, mostly that the folder of the base is not on the volume, or has other bytes than before.",
      "Put it back: it is taken up within 30 s. After `BASE_NOT_READ` restart serve.",
    ],
  },
  {
    name: "LoralineEngineRestarting",
    expr: "sum by (namespace, engine, replica) (increase(loraline_agent_engine_starts_total{NS}[30m])) > 3",
    for: "0m",
    severity: "warning",
    summary: "The engine process of {{ $labels.replica }} ({{ $labels.engine }}) keeps starting again",
    means: "Each start proves all adapters anew; until then the replica takes no requests.",
    mend: [
      "`kubectl logs POD -c vllm --previous`: mostly memory (`OOMKilled` in `describe pod`), or a fault of a device.",
      "Less memory: fewer `maxLoras`, smaller `maxModelLen`; or a higher limit.",
    ],
  },
  {
    name: "LoralineReplicaProblem",
    expr: 'max by (namespace, engine, replica, code) (loraline_replica_problem{NS,code!="LEAVING"}) == 1',
    for: "5m",
    severity: "warning",
    summary: "Replica {{ $labels.replica }} of {{ $labels.engine }} is not ready: {{ $labels.code }}",
    means: "It takes no requests; other replicas of the engine do.",
    mend: ["`loraline explain CODE`; the agent's log (`kubectl logs POD -c agent`) has the whole message."],
  },
  {
    name: "LoralineProofsFailing",
    expr: grewOrBegan("namespace, engine, code", 'loraline_agent_step_failures_total{NS,step="prove"}', "30m"),
    for: "0m",
    severity: "warning",
    summary: "An adapter could not be proven on engine {{ $labels.engine }}: {{ $labels.code }}",
    means: "What the engine computes is not what was trained. The version is not served there, and the one before stays.",
    mend: [
      "`loraline adapters` shows which version, on which replica, with the numbers of the proof.",
      "On all replicas: the version is at fault, or the engine's settings (quantization, dtype) are not those it was trained for. On one: that replica, or its disk. Delete its pod.",
    ],
  },
  {
    name: "LoralineNotConverging",
    expr: "max by (namespace, engine) (loraline_versions_oldest_converging_seconds{NS}) > 1800",
    for: "5m",
    severity: "warning",
    summary: "A version waits for half an hour to be proven on engine {{ $labels.engine }}",
    means: "A trained adapter is not served yet. Its run says what it waits for.",
    mend: [
      "`loraline runs show RUN` and `loraline adapters`: which replica is awaited, and why.",
      "`unplaced`: `maxCpuLoras` or memory are used up; add replicas. A replica that hangs: delete its pod.",
    ],
  },
  {
    name: "LoralineNoTrainer",
    expr: 'sum by (namespace) (loraline_train_leader{NS}) < 1 or (sum by (namespace) (up{NS,job="loraline"}) unless sum by (namespace) (loraline_train_leader{NS}))',
    for: "2m",
    severity: "critical",
    summary: "No controller starts attempts",
    means: "Attempts that run go on; no new one starts, and those that end are not followed by the next.",
    mend: [
      "`kubectl get pods -l app.kubernetes.io/component=train`, its log, `/readyz`.",
      "Ready and without the lease: `kubectl get lease` names who has it. A holder that is gone loses it within 15 s.",
    ],
  },
  {
    name: "LoralineQueueStuck",
    expr: "max by (namespace, tenant) (loraline_runs_oldest_waiting_seconds{NS}) > 3600",
    for: "10m",
    severity: "warning",
    summary: "A run of {{ $labels.tenant }} has waited for {{ $value | humanizeDuration }}",
    means: "Nothing is lost; the run waits for devices, a quota, or something that is missing.",
    mend: [
      "`sum by (reason) (loraline_runs_waiting)`: the reasons, explained in [operations.md](operations.md#attempts).",
      "`WAITING_FOR_DEVICE`, `QUOTA` for long: more devices, or a smaller request. `IMAGE`, `VOLUME`, `POD_REFUSED`: mend it; the run goes on by itself.",
    ],
  },
  {
    name: "LoralineRunsFailing",
    expr: 'sum by (namespace) (increase(loraline_runs_ended_total{NS,outcome="failed"}[1h])) > 2 and sum by (namespace) (increase(loraline_runs_ended_total{NS,outcome="failed"}[1h])) > 0.5 * sum by (namespace) (increase(loraline_runs_ended_total{NS}[1h]))',
    for: "0m",
    severity: "warning",
    summary: "More than half of the runs of the last hour failed",
    means: "Single failures are mostly users' settings; so many at once are mostly ours.",
    mend: [
      '`sum by (code, tenant) (increase(loraline_runs_ended_total{outcome="failed"}[1h]))`.',
      "One code for all tenants, such as `ATTEMPTS_EXHAUSTED` or `DEVICE_MISSING`: nodes, drivers, the trainer's image. `loraline explain CODE`.",
    ],
  },
  {
    name: "LoralineNotReady",
    expr: "max by (namespace, component, pod, check) (loraline_problem{NS}) == 1",
    for: "5m",
    severity: "warning",
    summary: "{{ $labels.component }} is not ready: {{ $labels.check }}",
    means: "The service waits, and goes on by itself when what it needs is back.",
    mend: [
      "Its `/readyz` (port 8081) and its log say what is missing, in words.",
      "`nats`: LoralineNatsDown. `objects`: LoralineStoreAway. `kubernetes`: the API server, or the CRDs. `engine`: LoralineEngineDown.",
    ],
  },
  {
    name: "LoralineTargetDown",
    expr: 'min by (namespace, pod, instance) (up{NS,job="loraline"}) == 0',
    for: "5m",
    severity: "warning",
    summary: "{{ $labels.pod }} ({{ $labels.instance }}) cannot be scraped",
    means: "It is gone, hangs, or Prometheus may not reach it. Other alerts do not see what it sees.",
    mend: [
      "`kubectl get pod`; is it running? Its liveness probe would have ended one that hangs.",
      "Running: the NetworkPolicy. `networkPolicy.metricsFrom` must name Prometheus' namespace.",
    ],
  },
  {
    name: "LoralineNatsDown",
    expr: "min by (namespace, server) (loraline_nats_up{NS}) == 0",
    for: "1m",
    severity: "critical",
    summary: "NATS server {{ $labels.server }} does not answer",
    means:
      "With one server everything that is written waits: uploads, runs, promotions. Chats of tenants without limits go on. What was acknowledged is not lost. With three, two go on.",
    mend: [
      "`kubectl get pods -l app.kubernetes.io/component=nats`, `kubectl logs POD`. Pending: its claim or node. Restarts: its disk, or memory.",
      "A volume that is lost: [the store is lost](operations.md#backup-and-restore).",
    ],
  },
  {
    name: "LoralineBusLag",
    expr: "max by (namespace, stream, consumer) (loraline_nats_consumer_pending{NS}) > 1000",
    for: "10m",
    severity: "warning",
    summary: "{{ $labels.consumer }} is {{ $value }} messages behind",
    means: "Work is done late. `projector-…`: what users see of runs and datasets is old. `tokenize-…`, `ingest-…`: runs and uploads wait.",
    mend: [
      "Is the service ready, and does it log errors? The consumer's name begins with it.",
      "It works and is slow: more replicas of it (`ingest.replicas`, `tokenize.replicas`, `gateway.replicas`).",
    ],
  },
  {
    name: "LoralineDeadLetters",
    expr: 'max by (namespace) (loraline_nats_stream_messages{NS,stream="DLQ"}) - max by (namespace) (loraline_nats_stream_messages{NS,stream="DLQ"} offset 15m) > 0',
    for: "0m",
    severity: "warning",
    summary: "Messages failed for good",
    means: "Something that was asked for will not be done unless somebody sends it again. Its owner sees the reason at the run or dataset.",
    mend: ["`loraline dlq ls` shows each with its reason; `loraline explain CODE`. When it is mended: `loraline dlq redrive SEQ`."],
  },
  {
    name: "LoralineStoreFilling",
    expr: 'max by (namespace, server) (loraline_nats_store_bytes{NS} / loraline_nats_store_limit_bytes{NS}) > 0.85 or max by (namespace, stream) (loraline_nats_stream_bytes{NS,stream!~"PROGRESS|DLQ|SPANS|WANTED|KV_responses"} / loraline_nats_stream_limit_bytes{NS}) > 0.9',
    for: "5m",
    severity: "critical",
    summary: "NATS' store is {{ $value | humanizePercentage }} full ({{ $labels.server }}{{ $labels.stream }})",
    means: "When it is full, writes are refused (`STORE_FULL`, HTTP 507) and work waits.",
    mend: [
      "`loraline storage --nats URL`: who has how much. Delete datasets and adapters that nobody needs; blobs belong into S3.",
      "A stream: raise `nats.limits`. The server: [enlarge its claim](operations.md#backup-and-restore).",
    ],
  },
  {
    name: "LoralineStoreAway",
    expr: 'max by (namespace, component) (loraline_problem{NS,check="objects"}) == 1',
    for: "2m",
    severity: "critical",
    summary: "{{ $labels.component }} cannot use the object store",
    means: "Uploads are refused, datasets and runs wait; chats go on, and nothing is lost.",
    mend: [
      "The service's `/readyz` has the store's own words: it does not answer, it refuses (`STORE_REFUSED`), it is full (`STORE_FULL`).",
      "Refused: the Secret, the policy of the bucket; restart the services where the Secret changed.",
    ],
  },
];

/** `groups` of a PrometheusRule. @param selector - of the release's series. */
export const ruleGroups = (selector: string) => [
  {
    name: "loraline",
    rules: alerts.map(({ name, expr, for: after, severity, summary, means }) => ({
      alert: name,
      expr: expr.replaceAll(/\bNS\b/g, selector),
      for: after,
      labels: { severity },
      annotations: { summary, description: means.replaceAll("`", "") },
    })),
  },
];

export const runbookPage = (): string =>
  [
    "# Runbook",
    "",
    "Generated from `packages/contracts/src/monitoring/alerts.ts` by `make generate`. One section for each alert of the chart (`monitoring.rules`). Codes: `loraline explain CODE`, or [errors.md](errors.md);",
    "what dies and what then happens: [operations.md](operations.md#what-if-it-dies-here-on-kubernetes).",
    "",
    ...alerts.flatMap(({ name, expr, for: after, severity, means, mend }) => [
      `## ${name}`,
      "",
      `**${severity}**, after ${after}. ${means}`,
      "",
      ...mend.map((step, index) => `${index + 1}. ${step}`),
      "",
      "```promql",
      expr.replaceAll(/\bNS,/g, "").replaceAll("{NS}", ""),
      "```",
      "",
    ]),
  ].join("\n");
