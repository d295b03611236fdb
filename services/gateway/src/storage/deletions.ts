/** Deletions: a whole adapter, a whole tenant, and how far they are. The collector (@loraline/storage) carries them out. */
import type { Bus } from "@loraline/bus";
import { adapterKey, buckets, deletionKey, type DeletionState, everyDeletionOf, type Stays } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { type Audited, createAudited } from "../access/audit.ts";
import type { Caller } from "../access/auth.ts";
import { seesAdapter } from "../access/decide-models.ts";
import { revoked } from "../access/auth.ts";
import type { GatewayContext } from "../context.ts";
import { badRequest, notFound } from "../errors.ts";
import { ownAdapterName } from "../openai-ids.ts";

type Wanted = Pick<DeletionState, "tenant" | "what" | "id" | "by">;

/** Writes down that something is to be deleted. Asking again changes nothing while that is under way. */
export async function requestDeletion(bus: Pick<Bus, "bucket">, wanted: Wanted): Promise<void> {
  const deletions = await bus.bucket(buckets.deletions);
  const fresh = { ...wanted, at: new Date().toISOString(), waiting: null, doneAt: null };
  await deletions.change(deletionKey(wanted), (current) => (current === undefined || current.doneAt !== null ? fresh : undefined));
}

/** What is left by every deletion, for whoever asks what stays. */
const audit = { what: "audit log", why: "who deleted what, and when; without any content" } as const satisfies Stays;
const envelope = {
  what: "event `dataset.deleted`",
  why: "says for 90 days that the dataset is gone, and who deleted it",
} as const satisfies Stays;

/** What stays of a dataset, because something else was made of it. A key that is bound to other adapters is told no names. */
export async function whatStaysOf(datasetId: string, caller: Caller, { state }: Pick<GatewayContext, "state">): Promise<Stays[]> {
  const { tenant } = caller;
  const users = (await state.runUses(tenant)).filter(({ spec }) => spec.dataset === datasetId || spec.validation === datasetId);
  return users
    .flatMap((run): Stays[] => {
      const isSeen = seesAdapter(caller, run.spec.adapter);
      if (run.finishedAt === null)
        return [
          {
            what: isSeen ? `run ${run.runId}` : "a run of another adapter",
            why: "has not ended; its tokens and checkpoints go when it has. Cancel it to have them gone sooner",
          },
        ];
      if (run.served === null) return [];
      const version = isSeen ? `${tenant}/${run.spec.adapter}@${run.served.version}` : "a version of another adapter";
      return [{ what: version, why: "was trained on it; weights and test prompts (as tokens) stay until the version is deleted" }];
    })
    .concat(envelope, audit);
}

/** Whether the adapter can be deleted, and the deletion of it. */
async function deleteAdapter(adapter: string, request: FastifyRequest, context: GatewayContext, audited: Audited): Promise<Stays[]> {
  const { tenant, by } = request.caller;
  const { bus, state } = context;
  const found = await (await bus.bucket(buckets.adapters)).get(adapterKey({ tenant, adapter }));
  const runs = (await state.runUses(tenant)).filter(({ spec }) => spec.adapter === adapter);
  // Of an adapter that no run ever made there are its runs, which were rejected, failed or cancelled.
  if (found === undefined && runs.length === 0) throw notFound("adapter", adapter, "adapter");
  const open = runs.find(({ finishedAt }) => finishedAt === null);
  if (open !== undefined) {
    throw new PermanentError(
      "adapter_in_training",
      `Run ${open.runId} trains ${adapter} and has not ended (${open.phase}). Cancel it, or wait for it, then delete the adapter.`,
      { status: 409, param: "adapter" },
    );
  }
  await audited(request, { action: "adapter.delete", target: adapter }, () =>
    requestDeletion(bus, { tenant, what: "adapter", id: adapter, by }),
  );
  return [audit];
}

export async function deletionRoutes(context: GatewayContext): Promise<(app: FastifyInstance) => void> {
  const { bus, keysOf, log } = context;
  const audited = createAudited(context);
  const [deletions, keys] = await Promise.all([bus.bucket(buckets.deletions), bus.bucket(buckets.keys)]);
  return (app) => {
    app.get("/loraline/deletions", async (request) => {
      const entries = await deletions.entries(everyDeletionOf(request.caller.tenant), { skipUnreadable: true });
      return { data: entries.map(({ value }) => value).toSorted((a, b) => (a.at < b.at ? 1 : -1)) };
    });

    app.delete("/loraline/adapters/:adapter", async (request) => {
      const { adapter } = request.params as { adapter: string };
      const name = ownAdapterName(request.caller.tenant, adapter);
      return { id: name, deleted: true, stays: await deleteAdapter(name, request, context, audited) };
    });

    app.delete("/loraline/tenants/:tenant", async (request) => {
      const { tenant: named } = request.params as { tenant: string };
      const { tenant, by } = request.caller;
      if (named !== tenant) throw badRequest("tenant_foreign", `This key belongs to ${tenant}: it cannot delete ${named}.`, "tenant");
      await audited(request, { action: "tenant.delete", target: tenant }, async () => {
        await requestDeletion(bus, { tenant, what: "tenant", id: tenant, by });
        const at = new Date().toISOString();
        // Last: without keys nothing new comes, and nobody could ask again if this broke off.
        for (const [hash] of keysOf(tenant)) await keys.change(hash, (record) => record && revoked(record, at));
      });
      log.info({ tenant, by }, "tenant is to be deleted");
      const stays = [{ what: "revoked keys", why: "their hashes and names, so that none of them is ever accepted again" }, audit];
      return { id: tenant, deleted: true, stays };
    });
  };
}
