"""What clients speak to: REST and Socket.IO on aiohttp; only `wire` knows names and statuses."""
