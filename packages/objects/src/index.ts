export { digestOf } from "./digest.ts";
export { eraseMessages } from "./erase-messages.ts";
export { createJetStreamObjects, removeUnfinishedBlobs } from "./jetstream.ts";
export { objectKey, type Objects, type StoredBlob } from "./objects.ts";
export { objectsEnv, objectsFromEnv } from "./objects-from-env.ts";
export { createS3Objects } from "./s3.ts";
export { getBytes, getJson, getToFile, putJson } from "./whole-blobs.ts";
export { type StoreState, watchedObjects } from "./watched-objects.ts";
export { digestOfFile } from "./digest.ts";
