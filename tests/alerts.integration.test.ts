/** Every alert is made to fire by its fault, in promtool's tests of rules, and a line that is well fires none. */
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { promtool } from "./prometheus-under-test.ts";

const chart = join(import.meta.dirname, "../helm/loraline/files");
interface Rule {
  alert: string;
  expr: string;
}
const groups = JSON.parse(await readFile(join(chart, "alerts.json"), "utf8")) as { rules: Rule[] }[];
const names = groups.flatMap(({ rules }) => rules.map(({ alert }) => alert));

/** Series by name, in promtool's notation: one value each minute. */
type Series = Readonly<Record<string, string>>;
const steady = (value: number): string => `${value}x180`;
const ns = 'namespace="team"';
const bucket = (le: string): string => `loraline_gateway_first_byte_seconds_bucket{${ns},base="smol",le="${le}"}`;

const well: Series = {
  [`loraline_engine_replicas{${ns},engine="smol",base="smol",state="ready"}`]: steady(2),
  [`loraline_gateway_http_requests_total{${ns},code="200"}`]: "0+60x180",
  [`loraline_gateway_http_requests_total{${ns},code="503"}`]: steady(3),
  [`loraline_gateway_waiting_turn{${ns},pod="gateway-1"}`]: steady(0),
  [bucket("1")]: "0+60x180",
  [bucket("30")]: "0+60x180",
  [bucket("+Inf")]: "0+60x180",
  [`loraline_agent_engine_starts_total{${ns},engine="smol",replica="pod-1"}`]: steady(1),
  [`loraline_versions_oldest_converging_seconds{${ns},engine="smol"}`]: steady(0),
  [`loraline_train_leader{${ns}}`]: steady(1),
  [`loraline_runs_ended_total{${ns},outcome="served"}`]: "0+1x180",
  [`loraline_runs_ended_total{${ns},outcome="failed",code="LOSS_NAN"}`]: steady(1),
  [`up{${ns},job="loraline",pod="gateway-1",instance="10.0.0.1:9464"}`]: steady(1),
  [`loraline_nats_up{${ns},server="nats-0"}`]: steady(1),
  [`loraline_nats_consumer_pending{${ns},stream="RUNS",consumer="projector-runs"}`]: steady(3),
  [`loraline_nats_stream_messages{${ns},stream="DLQ"}`]: steady(2),
  [`loraline_nats_store_bytes{${ns},server="nats-0"}`]: steady(100),
  [`loraline_nats_store_limit_bytes{${ns},server="nats-0"}`]: steady(1000),
  [`loraline_nats_stream_bytes{${ns},stream="RUNS"}`]: steady(10),
  [`loraline_nats_stream_limit_bytes{${ns},stream="RUNS"}`]: steady(100),
  // Loses its oldest messages when it is full.
  [`loraline_nats_stream_bytes{${ns},stream="SPANS"}`]: steady(100),
  [`loraline_nats_stream_limit_bytes{${ns},stream="SPANS"}`]: steady(100),
};

/** What is different when an alert must fire, an hour after the fault began; `also`: alerts of which this fault is a case, too. */
const faults: Readonly<Record<string, { series: Series; also?: readonly string[] }>> = {
  LoralineEngineDown: { series: { [`loraline_engine_replicas{${ns},engine="smol",base="smol",state="ready"}`]: "2x60 0x120" } },
  LoralineRequestsFailing: { series: { [`loraline_gateway_http_requests_total{${ns},code="503"}`]: "0x60 0+10x120" } },
  LoralineSlow: { series: { [bucket("1")]: "0+60x60 3600+30x120" } },
  LoralineGatewayBusy: { series: { [`loraline_gateway_waiting_turn{${ns},pod="gateway-1"}`]: "0x60 4x120" } },
  LoralineEngineProblem: { series: { [`loraline_engine_problem{${ns},engine="smol",base="smol",code="BASE_MISSING"}`]: "_x60 1x120" } },
  LoralineEngineRestarting: {
    series: { [`loraline_agent_engine_starts_total{${ns},engine="smol",replica="pod-1"}`]: "1x60 1+0.2x120" },
  },
  LoralineReplicaProblem: {
    series: { [`loraline_replica_problem{${ns},engine="smol",replica="pod-1",code="TEMPLATE_MISMATCH"}`]: "_x60 1x120" },
  },
  // The first failure of its kind: the counter begins with 1.
  LoralineProofsFailing: {
    series: { [`loraline_agent_step_failures_total{${ns},engine="smol",step="prove",code="PROOF_FAILED"}`]: "_x100 1x80" },
  },
  LoralineNotConverging: { series: { [`loraline_versions_oldest_converging_seconds{${ns},engine="smol"}`]: "0x60 0+60x120" } },
  LoralineNoTrainer: { series: { [`loraline_train_leader{${ns}}`]: "1x60 0x120" } },
  LoralineQueueStuck: { series: { [`loraline_runs_oldest_waiting_seconds{${ns},tenant="acme"}`]: "_x20 0+60x160" } },
  LoralineRunsFailing: {
    series: {
      [`loraline_runs_ended_total{${ns},outcome="served"}`]: steady(5),
      [`loraline_runs_ended_total{${ns},outcome="failed",code="LOSS_NAN"}`]: "0x60 0+0.2x120",
    },
  },
  LoralineNotReady: { series: { [`loraline_problem{${ns},component="ingest",pod="ingest-1",check="nats"}`]: "_x60 1x120" } },
  LoralineTargetDown: { series: { [`up{${ns},job="loraline",pod="gateway-1",instance="10.0.0.1:9464"}`]: "1x60 0x120" } },
  LoralineNatsDown: { series: { [`loraline_nats_up{${ns},server="nats-0"}`]: "1x60 0x120" } },
  LoralineBusLag: { series: { [`loraline_nats_consumer_pending{${ns},stream="RUNS",consumer="projector-runs"}`]: "0x60 2000x120" } },
  LoralineDeadLetters: { series: { [`loraline_nats_stream_messages{${ns},stream="DLQ"}`]: "2x110 3x70" } },
  LoralineStoreFilling: { series: { [`loraline_nats_store_bytes{${ns},server="nats-0"}`]: "100x60 900x120" } },
  LoralineStoreAway: {
    series: { [`loraline_problem{${ns},component="ingest",pod="ingest-1",check="objects"}`]: "_x60 1x120" },
    also: ["LoralineNotReady"],
  },
};

const inputOf = (series: Series) => Object.entries({ ...well, ...series }).map(([name, values]) => ({ series: name, values }));
const fires = (which: string, exp: number) => ({
  expr: `count(count by (alertname) (ALERTS{alertstate="firing",${which}})) or vector(0)`,
  eval_time: "2h",
  exp_samples: [{ labels: "{}", value: exp }],
});

test("every alert fires by its fault and by no other, and none fires while all is well", async () => {
  expect(Object.keys(faults).toSorted(), "each alert has a fault").toEqual(names.toSorted());
  const dir = await mkdtemp(join(tmpdir(), "loraline-alerts-"));
  try {
    await writeFile(join(dir, "rules.json"), JSON.stringify({ groups }));
    const checked = await promtool(dir, "check", "rules", "rules.json");
    expect(checked, checked.said).toMatchObject({ code: 0 });
    const rest = { interval: "1m", external_labels: {} };
    const tests = Object.entries(faults).map(([name, { series, also = [] }]) => ({
      ...rest,
      name,
      input_series: inputOf(series),
      promql_expr_test: [fires(`alertname="${name}"`, 1), fires(`alertname!~"${[name, ...also].join("|")}"`, 0)],
    }));
    const healthy = { ...rest, name: "all is well", input_series: inputOf({}), promql_expr_test: [fires('alertname=~".+"', 0)] };
    await writeFile(
      join(dir, "tests.json"),
      JSON.stringify({ rule_files: ["rules.json"], evaluation_interval: "1m", tests: [healthy, ...tests] }),
    );
    const tried = await promtool(dir, "test", "rules", "tests.json");
    expect(tried, tried.said).toMatchObject({ code: 0 });
  } finally {
    await rm(dir, { recursive: true });
  }
});

test("each alert has a section of the runbook, and no other has", async () => {
  const text = await readFile(join(import.meta.dirname, "../docs/runbook.md"), "utf8");
  expect([...text.matchAll(/^## (.+)$/gm)].map(([, name]) => name)).toEqual(names);
});

test("dashboards have what Grafana needs: ids, places that do not overlap, queries", async () => {
  const files = await readdir(join(chart, "dashboards"));
  expect(files).toHaveLength(5);
  for (const file of files) {
    const { uid, panels } = JSON.parse(await readFile(join(chart, "dashboards", file), "utf8")) as {
      uid: string;
      panels: { id: number; gridPos: { x: number; y: number; w: number; h: number }; targets: { expr: string; refId: string }[] }[];
    };
    expect(uid).toBe(`loraline-${file.replace(".json", "")}`);
    expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
    const taken = new Set<string>();
    for (const { gridPos, targets } of panels) {
      expect(gridPos.x + gridPos.w).toBeLessThanOrEqual(24);
      for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++) {
        const place = `${x} ${gridPos.y}`;
        expect(taken).not.toContain(place);
        taken.add(place);
      }
      expect(targets.length).toBeGreaterThan(0);
      expect(new Set(targets.map(({ refId }) => refId)).size).toBe(targets.length);
      for (const { expr } of targets) expect(expr).not.toMatch(/\bNS\b/);
    }
  }
});
