/**
 * The operator as a process of its own.
 *
 * What its ServiceAccount needs, as a Role in each namespace of OPERATOR_NAMESPACES:
 *
 *   loraline.dev          finetunes, adapters                get list watch
 *   loraline.dev          adapters                           create
 *   loraline.dev          finetunes/status, adapters/status  patch
 *   coordination.k8s.io   leases                             get create update
 *   (core)                configmaps                         get
 *   (core)                events                             create
 *   (core)                namespaces                         get      its own; a Role can grant that
 *
 * For Bases and Engines, in the release's namespace:
 *
 *   loraline.dev          bases, engines                     get list watch, their status: patch
 *   batch                 jobs                               get list watch create
 *   apps                  deployments                        get list watch create patch delete
 *   (core)                services, configmaps               get create patch delete; the template's ConfigMap: list watch
 *   (core)                pods                               list
 *   coordination.k8s.io   leases                             get create update
 *
 * And of NATS: to publish dataset.import-requested, dataset.received, run.requested, run.cancel-requested and the adapter commands of
 * its tenants; to read the streams DATASETS, RUNS, ADAPTERS and DLQ, and KV runs, adapters, engines, replicas, holdings, limits, training and traffic; and
 * to write objects of kind `raw`.
 */
import { randomUUID } from "node:crypto";
import { joinBus, natsEnv, quotasEnv } from "@loraline/bus";
import { tenantName } from "@loraline/contracts";
import { createKube } from "@loraline/kube";
import { objectsEnv, objectsFromEnv } from "@loraline/objects";
import { PermanentError, runService } from "@loraline/runtime";
import { z } from "zod";
import { createOperatorService } from "./service.ts";

const json = z.string().transform((text, context): unknown => {
  try {
    return JSON.parse(text);
  } catch (error) {
    context.addIssue(`is not JSON: ${(error as Error).message}`);
    return z.NEVER;
  }
});

const operatorEnv = z.object({
  ...natsEnv,
  ...objectsEnv,
  ...quotasEnv,
  OPERATOR_NAMESPACES: z.string().optional().describe("Namespaces to serve, separated by commas; absent: the pod's."),
  OPERATOR_TENANTS: json
    .pipe(z.record(z.string(), tenantName))
    .default({})
    .describe('JSON, namespace to tenant, such as {"team-a": "acme"}; a namespace that is not named is the tenant of its name.'),
  OPERATOR_ENGINE_TEMPLATE: z
    .string()
    .optional()
    .describe("ConfigMap of the pod's namespace with the template of engines; absent: Engines do nothing."),
  POD_NAMESPACE: z.string().optional(),
  POD_NAME: z.string().optional().describe("Who holds the leases."),
});

await runService({
  service: "operator",
  host: process,
  env: operatorEnv,
  async start({ env, log, telemetry, health, ...service }) {
    const tenants = tenantsOf(env);
    const running = new AsyncDisposableStack();
    const { nc, bus } = running.use(await joinBus({ env, log, health, telemetry, ...service }, "operator"));
    const objects = running.use(await objectsFromEnv(env, nc, { log }));
    const problems = new Map<string, string>();
    health.check("kubernetes", () => (problems.size === 0 ? undefined : [...problems.values()].join("\n")));
    const operator = await createOperatorService({
      kube: createKube(),
      bus,
      objects,
      log,
      telemetry,
      tenants,
      quotas: env.LORALINE_QUOTAS,
      identity: env.POD_NAME ?? `operator-${randomUUID()}`,
      engines:
        env.OPERATOR_ENGINE_TEMPLATE === undefined || env.POD_NAMESPACE === undefined
          ? undefined
          : { namespace: env.POD_NAMESPACE, templateName: env.OPERATOR_ENGINE_TEMPLATE },
      onProblem(namespace, problem) {
        if (problem === undefined) problems.delete(namespace);
        else problems.set(namespace, problem);
      },
    });
    running.use(operator);
    return running;
  },
});

/** @throws PermanentError ENV_INVALID */
function tenantsOf(env: z.output<typeof operatorEnv>): Map<string, string> {
  const named = (env.OPERATOR_NAMESPACES ?? env.POD_NAMESPACE ?? "").split(",").map((name) => name.trim());
  const list = [...new Set(named)].filter((name) => name !== "");
  if (list.length === 0) {
    throw new PermanentError("ENV_INVALID", "set OPERATOR_NAMESPACES to the namespaces to serve (or POD_NAMESPACE to the pod's own).", {
      param: "OPERATOR_NAMESPACES",
    });
  }
  const unserved = Object.keys(env.OPERATOR_TENANTS).filter((namespace) => !list.includes(namespace));
  if (unserved.length > 0) {
    throw new PermanentError(
      "ENV_INVALID",
      `OPERATOR_TENANTS names ${unserved.join(", ")}, which OPERATOR_NAMESPACES does not serve. Add it there, or remove it.`,
      { param: "OPERATOR_TENANTS" },
    );
  }
  return new Map(list.map((namespace) => [namespace, env.OPERATOR_TENANTS[namespace] ?? namespace]));
}
