export { courierCommand, createProcessLauncher } from "./launchers/process-launcher.ts";
export { createTrainService } from "./controller/service.ts";
