// Loaded before kinesalite, which ends with "aborted" when a client goes away in the middle of a request; ours are killed.
process.on("uncaughtException", (error) => {
  if (error.code === "ECONNRESET") return;
  console.error(error);
  process.exit(1);
});
