/** Grafana's dashboards: `make generate` writes them to helm/loraline/files/dashboards. Their queries are run against a real line in tests/e2e. */

interface Panel {
  title: string;
  /** Name of a series (Grafana's legend) to PromQL. `NS` stands for the selector of the chosen namespaces. */
  queries: Readonly<Record<string, string>>;
  /** Grafana's name of the unit. Default: a count. */
  unit?: string;
  kind?: "timeseries" | "stat" | "table";
  /** What the panel shows, in a sentence. */
  help?: string;
  /** Of 24. Default 8. */
  width?: number;
}

interface Dashboard {
  /** Of its file. */
  name: string;
  title: string;
  panels: readonly Panel[];
}

const quantile = (q: number, metric: string, by = "", labels = "NS"): string =>
  `histogram_quantile(${q}, sum by (${["le", ...(by === "" ? [] : [by])].join(", ")}) (rate(${metric}_bucket{${labels}}[$__rate_interval])))`;
const rate = (metric: string, by: string, labels = "NS"): string => `sum by (${by}) (rate(${metric}{${labels}}[$__rate_interval]))`;

export const dashboards: readonly Dashboard[] = [
  {
    name: "line",
    title: "Loraline / line",
    panels: [
      {
        title: "Ready replicas of engines",
        kind: "stat",
        queries: { "{{engine}}": 'max by (engine) (loraline_engine_replicas{NS,state="ready"})' },
      },
      { title: "Services that are not ready", kind: "stat", queries: { services: "count(loraline_ready{NS} == 0) or vector(0)" } },
      { title: "Failed for good", kind: "stat", queries: { "dead letters": 'max(loraline_nats_stream_messages{NS,stream="DLQ"})' } },
      { title: "Answers by status", unit: "reqps", queries: { "{{code}}": rate("loraline_gateway_http_requests_total", "code") } },
      {
        title: "Errors by code",
        unit: "reqps",
        queries: { "{{error}} {{model}}": rate("loraline_gateway_http_requests_total", "error, model", 'NS,error!=""') },
      },
      {
        title: "Answer times",
        unit: "s",
        queries: {
          "p50 {{route}}": quantile(0.5, "loraline_gateway_http_seconds", "route"),
          "p99 {{route}}": quantile(0.99, "loraline_gateway_http_seconds", "route"),
        },
      },
      {
        title: "Runs by phase",
        queries: { "{{phase}}": "sum by (phase) (loraline_runs{NS}) or vector(0)" },
        help: "Runs that are not over.",
      },
      {
        title: "Runs that ended, by outcome",
        unit: "short",
        queries: { "{{outcome}}": "sum by (outcome) (loraline_runs_ended_total{NS})" },
      },
      { title: "Datasets that were read", queries: { "{{outcome}}": "sum by (outcome) (loraline_datasets_ended_total{NS})" } },
      {
        title: "Messages handled",
        unit: "ops",
        queries: { "{{consumer}} {{outcome}}": rate("loraline_message_seconds_count", "consumer, outcome") },
      },
      { title: "Lag of consumers", queries: { "{{consumer}}": "max by (consumer) (loraline_nats_consumer_pending{NS})" } },
      {
        title: "Reconciling",
        unit: "ops",
        queries: { "{{queue}} {{outcome}}": rate("loraline_reconcile_seconds_count", "queue, outcome") },
      },
      { title: "Memory", unit: "bytes", queries: { "{{pod}}{{instance}}": 'process_resident_memory_bytes{NS,job="loraline"}' } },
      {
        title: "CPU",
        unit: "cores",
        queries: { "{{pod}}{{instance}}": 'rate(process_cpu_seconds_total{NS,job="loraline"}[$__rate_interval])' },
      },
      { title: "Event loop, p99", unit: "s", queries: { "{{pod}}{{instance}}": "nodejs_eventloop_lag_p99_seconds{NS}" } },
    ],
  },
  {
    name: "runs",
    title: "Loraline / runs",
    panels: [
      {
        title: "Waiting, by reason",
        queries: { "{{reason}}": "sum by (reason) (loraline_runs_waiting{NS}) or vector(0)" },
        help: "What each reason means: docs/operations.md, Attempts.",
      },
      {
        title: "Longest wait",
        unit: "s",
        queries: { "{{tenant}}": "max by (tenant) (loraline_runs_oldest_waiting_seconds{NS}) or vector(0)" },
      },
      { title: "Attempts", queries: { "{{phase}}": "sum by (phase) (loraline_attempts{NS}) or vector(0)" } },
      {
        title: "Slots",
        queries: { "{{state}}": "max by (state) (loraline_train_slots{NS})" },
        help: "Empty where only the cluster's scheduler bounds attempts.",
      },
      { title: "GPUs in use", queries: { "{{tenant}}": "sum by (tenant) (loraline_gpus_in_use{NS}) or vector(0)" } },
      { title: "Optimizer steps", unit: "ops", queries: { "{{base}}": rate("loraline_train_steps_total", "base") } },
      { title: "Stages, median", unit: "s", queries: { "{{stage}}": quantile(0.5, "loraline_run_stage_seconds", "stage") } },
      { title: "Stages, p95", unit: "s", queries: { "{{stage}}": quantile(0.95, "loraline_run_stage_seconds", "stage") } },
      { title: "Last step to proven, median", unit: "s", queries: { proven: quantile(0.5, "loraline_last_step_to_proven_seconds") } },
      {
        title: "Ends of attempts without a result",
        queries: { "{{code}}": "sum by (code) (loraline_attempts_ended_total{NS}) or vector(0)" },
      },
      {
        title: "Ends of runs",
        kind: "table",
        queries: { "": "sum by (tenant, outcome, code) (loraline_runs_ended_total{NS})" },
        width: 16,
      },
      {
        title: "Trained and tokenized tokens",
        queries: { trained: "sum(loraline_trained_tokens_total{NS})", tokenized: "sum(loraline_tokenized_tokens_total{NS})" },
      },
      { title: "Checkpoints", queries: { "{{tenant}}": "sum by (tenant) (loraline_checkpoints_total{NS})" } },
      { title: "Reading datasets, p95", unit: "s", queries: { ingest: quantile(0.95, "loraline_ingest_seconds") } },
    ],
  },
  {
    name: "engines",
    title: "Loraline / engines and adapters",
    panels: [
      { title: "Replicas", queries: { "{{engine}} {{state}}": "max by (engine, state) (loraline_engine_replicas{NS})" } },
      { title: "Versions", queries: { "{{engine}} {{state}}": "max by (engine, state) (loraline_versions{NS})" } },
      {
        title: "Oldest version that is not proven yet",
        unit: "s",
        queries: { "{{engine}}": "max by (engine) (loraline_versions_oldest_converging_seconds{NS})" },
      },
      {
        title: "Adapters on replicas",
        queries: { "{{replica}} {{state}}": "max by (engine, replica, state) (loraline_agent_adapters{NS})" },
      },
      { title: "Loading and proving, p95", unit: "s", queries: { "{{step}}": quantile(0.95, "loraline_agent_step_seconds", "step") } },
      {
        title: "Steps that failed",
        queries: { "{{step}} {{code}}": "sum by (step, code) (loraline_agent_step_failures_total{NS}) or vector(0)" },
      },
      { title: "Starts of engines", queries: { "{{replica}}": "sum by (replica) (loraline_agent_engine_starts_total{NS})" } },
      {
        title: "Problems",
        kind: "table",
        queries: { "": "loraline_replica_problem{NS} or loraline_engine_problem{NS} or vector(0)" },
        width: 16,
      },
      {
        title: "First byte, by base",
        unit: "s",
        queries: {
          "p50 {{base}}": quantile(0.5, "loraline_gateway_first_byte_seconds", "base"),
          "p95 {{base}}": quantile(0.95, "loraline_gateway_first_byte_seconds", "base"),
        },
      },
      { title: "In flight", queries: { "{{base}} {{adapter}}": "sum by (base, adapter) (loraline_gateway_in_flight{NS})" } },
      { title: "Asked elsewhere", unit: "reqps", queries: { retries: "sum(rate(loraline_gateway_retries_total{NS}[$__rate_interval]))" } },
      {
        title: "vLLM: running and waiting",
        queries: {
          "running {{model_name}}": "sum by (model_name) (vllm:num_requests_running{NS})",
          "waiting {{model_name}}": "sum by (model_name) (vllm:num_requests_waiting{NS})",
        },
      },
      {
        title: "vLLM: KV cache in use",
        unit: "percentunit",
        queries: { "{{model_name}}": "max by (model_name) (vllm:kv_cache_usage_perc{NS})" },
      },
      {
        title: "vLLM: tokens",
        unit: "short",
        queries: {
          "prompt {{model_name}}": rate("vllm:prompt_tokens_total", "model_name"),
          "answers {{model_name}}": rate("vllm:generation_tokens_total", "model_name"),
        },
      },
      {
        title: "vLLM: prefix cache hits",
        unit: "percentunit",
        queries: {
          "{{model_name}}":
            "sum by (model_name) (vllm:prefix_cache_hits_total{NS}) / sum by (model_name) (vllm:prefix_cache_queries_total{NS})",
        },
      },
      {
        title: "vLLM: first token, p95",
        unit: "s",
        queries: { "{{model_name}}": quantile(0.95, "vllm:time_to_first_token_seconds", "model_name") },
      },
      {
        title: "vLLM: between tokens, p95",
        unit: "s",
        queries: { "{{model_name}}": quantile(0.95, "vllm:inter_token_latency_seconds", "model_name") },
      },
      {
        title: "vLLM: time in its queue, p95",
        unit: "s",
        queries: { "{{model_name}}": quantile(0.95, "vllm:request_queue_time_seconds", "model_name") },
      },
    ],
  },
  {
    name: "tenants",
    title: "Loraline / tenants and cost",
    panels: [
      {
        title: "Tokens, by tenant",
        unit: "short",
        queries: { "{{tenant}} {{kind}}": rate("loraline_gateway_tokens_total", "tenant, kind") },
      },
      { title: "Requests to models", unit: "reqps", queries: { "{{tenant}}": rate("loraline_gateway_requests_total", "tenant") } },
      {
        title: "Failed requests to models",
        unit: "reqps",
        queries: { "{{tenant}}": `${rate("loraline_gateway_requests_total", "tenant", 'NS,outcome="failed"')} or vector(0)` },
      },
      {
        title: "GPU hours in the chosen time",
        kind: "stat",
        queries: { "{{tenant}}": "sum by (tenant) (increase(loraline_gpu_seconds_total{NS}[$__range])) / 3600 or vector(0)" },
      },
      { title: "GPUs in use", queries: { "{{tenant}}": "sum by (tenant) (loraline_gpus_in_use{NS}) or vector(0)" } },
      {
        title: "Tokens in the chosen time",
        kind: "table",
        queries: { "": "sum by (tenant, base, adapter, kind) (increase(loraline_gateway_tokens_total{NS}[$__range]))" },
      },
      { title: "Runs", kind: "table", queries: { "": "sum by (tenant, outcome) (loraline_runs_ended_total{NS})" } },
      { title: "Rows of datasets", queries: { "{{tenant}} {{outcome}}": "sum by (tenant, outcome) (loraline_dataset_rows_total{NS})" } },
      {
        title: "Refused by limits (429)",
        unit: "reqps",
        queries: { "{{limit}}": `${rate("loraline_gateway_limited_total", "limit")} or vector(0)` },
      },
      {
        title: "Errors, by tenant",
        unit: "reqps",
        queries: { "{{tenant}} {{error}}": rate("loraline_gateway_http_requests_total", "tenant, error", 'NS,code=~"[45].."') },
      },
    ],
  },
  {
    name: "nats",
    title: "Loraline / NATS",
    panels: [
      { title: "Servers", kind: "stat", queries: { "{{server}}": "min by (server) (loraline_nats_up{NS})" } },
      {
        title: "Store in use",
        unit: "percentunit",
        queries: { "{{server}}": "max by (server) (loraline_nats_store_bytes{NS} / loraline_nats_store_limit_bytes{NS})" },
      },
      { title: "Connections", queries: { "{{server}}": "max by (server) (loraline_nats_connections{NS})" } },
      {
        title: "Messages",
        unit: "ops",
        queries: { "{{server}} {{direction}}": "sum by (server, direction) (rate(loraline_nats_messages_total{NS}[$__rate_interval]))" },
      },
      {
        title: "Bytes",
        unit: "Bps",
        queries: { "{{server}} {{direction}}": "sum by (server, direction) (rate(loraline_nats_bytes_total{NS}[$__rate_interval]))" },
      },
      { title: "Memory", unit: "bytes", queries: { "{{server}}": "max by (server) (loraline_nats_memory_bytes{NS})" } },
      {
        title: "Size of streams and buckets",
        unit: "bytes",
        queries: { "{{stream}}": "max by (stream) (loraline_nats_stream_bytes{NS})" },
        width: 12,
      },
      { title: "Messages in streams", queries: { "{{stream}}": "max by (stream) (loraline_nats_stream_messages{NS})" }, width: 12 },
      { title: "Lag of consumers", queries: { "{{consumer}}": "max by (consumer) (loraline_nats_consumer_pending{NS})" } },
      { title: "In work", queries: { "{{consumer}}": "max by (consumer) (loraline_nats_consumer_ack_pending{NS})" } },
      { title: "Delivered again", queries: { "{{consumer}}": "max by (consumer) (loraline_nats_consumer_redelivered{NS})" } },
      {
        title: "Clients that were cut off as too slow",
        queries: { "{{server}}": "max by (server) (loraline_nats_slow_consumers_total{NS})" },
      },
    ],
  },
];

const datasource = { type: "prometheus", uid: "${datasource}" };
const selector = 'namespace=~"$namespace"';

/** As Grafana reads it (schema 39). */
export function grafanaDashboard({ name, title, panels }: Dashboard): object {
  let [x, y] = [0, 0];
  return {
    uid: `loraline-${name}`,
    title,
    tags: ["loraline"],
    schemaVersion: 39,
    editable: true,
    refresh: "30s",
    time: { from: "now-3h", to: "now" },
    links: [{ type: "dashboards", title: "Loraline", tags: ["loraline"], asDropdown: true, includeVars: true, keepTime: true }],
    templating: {
      list: [
        { name: "datasource", label: "Prometheus", type: "datasource", query: "prometheus", current: {} },
        {
          name: "namespace",
          label: "Namespace",
          type: "query",
          datasource,
          query: { query: "label_values(loraline_ready, namespace)", refId: "namespace" },
          refresh: 2,
          includeAll: true,
          allValue: ".*",
          multi: true,
          current: { text: "All", value: "$__all" },
        },
      ],
    },
    panels: panels.map(({ title: panelTitle, queries, unit = "short", kind = "timeseries", help, width = 8 }, index) => {
      if (x + width > 24) [x, y] = [0, y + 8];
      const gridPos = { x, y, w: width, h: 8 };
      x += width;
      return {
        id: index + 1,
        type: kind,
        title: panelTitle,
        ...(help === undefined ? {} : { description: help }),
        gridPos,
        datasource,
        fieldConfig: { defaults: { unit, min: 0 }, overrides: [] },
        options:
          kind === "timeseries"
            ? { legend: { displayMode: "list", placement: "bottom", showLegend: true }, tooltip: { mode: "multi", sort: "desc" } }
            : {},
        targets: Object.entries(queries).map(([legendFormat, expr], number) => ({
          refId: String.fromCodePoint(65 + number),
          datasource,
          expr: expr.replaceAll(/\bNS\b/g, selector),
          legendFormat,
          // Points that lead to traces.
          exemplar: /_bucket/.test(expr),
          ...(kind === "timeseries" ? {} : { instant: true }),
          ...(kind === "table" ? { format: "table" } : {}),
        })),
      };
    }),
  };
}
