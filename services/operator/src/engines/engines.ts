/**
 * Reconciles the Engines of the release's namespace: makes their Deployments from the chart's template, tells serve of them by a ConfigMap that it
 * has mounted, and writes their statuses.
 */
import type { V1ConfigMap, V1Deployment, V1OwnerReference, V1Pod } from "@kubernetes/client-node";
import { type EngineSettings, engineSettingsList } from "@loraline/contracts";
import { type Kube, watch } from "@loraline/kube";
import { createKeyedQueue, type KeyedQueue, type Log, type Telemetry } from "@loraline/runtime";
import { isTrue } from "../conditions.ts";
import { madeBy } from "../decide-adapter.ts";
import type { LineView } from "../line-view.ts";
import { configMaps, deployments, disruptionBudgets, type Engine, engines, manager, pods, services } from "../resources.ts";
import { createStatusWriter, isOlder } from "../write-status.ts";
import { type AcceptedEngines, acceptEngines } from "./accept-engines.ts";
import { decideEngine } from "./decide-engine.ts";
import { engineObjects, type EngineTemplate, engineTemplate } from "./engine-manifest.ts";

interface EnginesDeps {
  kube: Kube;
  line: LineView;
  log: Log;
  telemetry: Telemetry;
  namespace: string;
  /** ConfigMap with the chart's template. */
  templateName: string;
  signal: AbortSignal;
}

const engineLabel = "loraline.dev/engine";
/** Key of the queue for what concerns all Engines; no Engine has it. */
const everything = "";
/** Nothing tells of a pod's own troubles, so they are looked up while an Engine is not ready. */
const lookAgainMs = 5000;

/** Reconciles until the signal is aborted. */
export async function serveEngines({ kube, line, log, telemetry, namespace, templateName, signal }: EnginesDeps): Promise<void> {
  const objects = new Map<string, Engine>();
  const made = new Map<string, V1Deployment>();
  const writer = createStatusWriter(kube, engines);
  let template: { content: EngineTemplate; owner: V1OwnerReference } | undefined;
  let accepted: AcceptedEngines = { settings: new Map(), refused: new Map() };
  let written: string | undefined;
  let started = false;
  const nameOf = (key: string): string => key.slice(namespace.length + 1);

  const reconcileAll = async (): Promise<void> => {
    if (template !== undefined) {
      const { content, owner } = template;
      const kept = written === undefined ? await readSettings(content.settingsConfigMap) : accepted.settings;
      accepted = acceptEngines(objects.values(), content, kept);
      const list = JSON.stringify([...accepted.settings.values()]);
      // Before the Deployments: their pods read it.
      if (list !== written) {
        const metadata = { name: content.settingsConfigMap, namespace, labels: { ...madeBy }, ownerReferences: [owner] };
        await kube.apply(configMaps, { metadata, data: { "engines.json": list } }, { manager });
        written = list;
      }
    } else accepted = acceptEngines(objects.values(), undefined, accepted.settings);
    for (const name of made.keys()) if (!objects.has(name)) await remove(name);
    for (const name of objects.keys()) queue.add(name);
  };

  const readSettings = async (name: string): Promise<Map<string, EngineSettings>> => {
    const text = (await kube.get(configMaps, { namespace, name }))?.data?.["engines.json"] ?? "[]";
    return new Map(engineSettingsList.parse(JSON.parse(text)).map((one) => [one.engine, one]));
  };

  const remove = async (name: string): Promise<void> => {
    const { metadata } = made.get(name) ?? {};
    if (metadata?.name === undefined) return;
    await kube.delete(deployments, { namespace, name: metadata.name }, { uid: metadata.uid, propagation: "Background" });
    await kube.delete(services, { namespace, name: metadata.name });
    await kube.delete(disruptionBudgets, { namespace, name: metadata.name });
    log.info({ engine: name }, "the Engine is gone, and its Deployment with it");
  };

  const reconcile = async (name: string): Promise<void> => {
    if (name === everything) return reconcileAll();
    const object = objects.get(name);
    if (object?.spec === undefined || object.metadata?.deletionTimestamp !== undefined) return;
    const settings = accepted.settings.get(name);
    const refused = accepted.refused.get(name);
    let deployment = made.get(name);
    if (settings !== undefined && refused === undefined && template !== undefined) {
      const all = engineObjects({ settings, spec: object.spec, template: template.content, namespace, owner: template.owner });
      deployment = await kube.apply(deployments, all.deployment, { manager });
      await kube.apply(services, all.service, { manager });
      if (all.budget !== undefined) await kube.apply(disruptionBudgets, all.budget, { manager });
      else await kube.delete(disruptionBudgets, { namespace, name: deployment.metadata?.name ?? "" });
    }
    const isServing =
      deployment !== undefined && isTrue(object.status?.conditions, "Ready") && (deployment.status?.unavailableReplicas ?? 0) === 0;
    const labelSelector = Object.entries(deployment?.spec?.selector.matchLabels ?? {}).map(([key, value]) => `${key}=${value}`);
    const itsPods: V1Pod[] =
      deployment === undefined || isServing ? [] : (await kube.list(pods, { namespace, labelSelector: labelSelector.join(",") })).items;
    const status = decideEngine({
      generation: object.metadata?.generation ?? 1,
      before: object.status,
      refused,
      deployment,
      pods: itsPods,
      record: settings === undefined ? undefined : line.engine(name),
      now: new Date().toISOString(),
    });
    const { written: after, afterMs } = await writer.write(object, status);
    const known = objects.get(name);
    if (after !== undefined && known !== undefined && !isOlder(after, known)) objects.set(name, after);
    if (afterMs !== undefined) queue.addAfter(name, afterMs);
    if (refused === undefined && !isTrue(status.conditions, "Ready")) queue.addAfter(name, lookAgainMs);
  };

  await using queue: KeyedQueue = createKeyedQueue({
    concurrency: 1,
    log,
    work: reconcile,
    measured: { metrics: telemetry.metrics, name: "engines" },
  });
  using _listening = line.subscribe({
    onEngines() {
      if (started) for (const name of objects.keys()) queue.add(name);
    },
    onReplica() {},
    onHolding() {},
  });
  const known = Array.from({ length: 3 }, () => Promise.withResolvers<void>());
  const watching = [
    watch<V1ConfigMap>(kube, configMaps, {
      namespace,
      fieldSelector: `metadata.name=${templateName}`,
      signal,
      log,
      onReady: () => known[0]?.resolve(),
      onChange(_key, map) {
        template = undefined;
        try {
          if (map !== undefined)
            template = { content: engineTemplate.parse(JSON.parse(map.data?.["template.json"] ?? "null")), owner: ownerOf(map) };
        } catch (error) {
          log.error({ err: error, configMap: templateName }, "the template of engines cannot be read; is it of another version?");
        }
        if (started) queue.add(everything);
      },
    }),
    watch<Engine>(kube, engines, {
      namespace,
      signal,
      log,
      onReady: () => known[1]?.resolve(),
      onChange(key, object) {
        const name = nameOf(key);
        const before = objects.get(name);
        if (before !== undefined && before.metadata?.uid !== object?.metadata?.uid) writer.forget(before.metadata?.uid ?? "");
        if (object === undefined) objects.delete(name);
        else objects.set(name, object);
        const isStatusOnly =
          before !== undefined &&
          object !== undefined &&
          before.metadata?.uid === object.metadata?.uid &&
          before.metadata?.generation === object.metadata?.generation;
        if (started) queue.add(isStatusOnly ? name : everything);
      },
    }),
    watch<V1Deployment>(kube, deployments, {
      namespace,
      labelSelector: `app.kubernetes.io/managed-by=${madeBy["app.kubernetes.io/managed-by"]},${engineLabel}`,
      signal,
      log,
      onReady: () => known[2]?.resolve(),
      onChange(_key, object) {
        const name =
          object?.metadata?.labels?.[engineLabel] ?? [...made].find(([, { metadata }]) => `${namespace}/${metadata?.name}` === _key)?.[0];
        if (name === undefined) return;
        if (object === undefined) made.delete(name);
        else made.set(name, object);
        if (started) queue.add(objects.has(name) ? name : everything);
      },
    }),
  ];
  const ended = new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
  await Promise.race([ended, Promise.all(known.map(({ promise }) => promise))]);
  if (!signal.aborted) {
    started = true;
    queue.add(everything);
    log.info("serving Engines");
  }
  await ended;
  await Promise.all(watching);
}

const ownerOf = ({ metadata }: V1ConfigMap): V1OwnerReference => ({
  apiVersion: "v1",
  kind: "ConfigMap",
  name: metadata?.name ?? "",
  uid: metadata?.uid ?? "",
});
