/** Holds tenants to the number of datasets that they may have, whoever published the event. */
import { type Bus, createDatasetQuota, type HandlerContext, type Received, type TenantQuotas } from "@loraline/bus";
import { datasetDeleted, datasetIngested, type datasetImportRequested, type datasetReceived, datasetRejected } from "@loraline/contracts";

type Event = typeof datasetReceived | typeof datasetImportRequested;
type Handle<E extends Event> = (received: Received<E>, context: HandlerContext) => Promise<void>;

/** @returns a handler that rejects a dataset over the quota with QUOTA_DATASETS instead of handling it. */
export async function createWithinQuota(bus: Bus, quotas: TenantQuotas): Promise<<E extends Event>(handle: Handle<E>) => Handle<E>> {
  const quota = await createDatasetQuota(bus);
  return (handle) => async (received, context) => {
    const { at } = received;
    const problem = await quota.judge(at.tenant, quotas.of(at.tenant).datasets, true);
    if (problem === undefined) return handle(received, context);
    const ends = await Promise.all([bus.last(datasetIngested, at), bus.last(datasetRejected, at), bus.last(datasetDeleted, at)]);
    if (ends.some((end) => end !== undefined)) return handle(received, context);
    context.log.info({ code: problem.code }, "dataset rejected");
    await bus.publish(datasetRejected, at, { ...problem, report: null, rejections: 0 });
  };
}
