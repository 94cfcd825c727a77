-- wrk -s load_http.lua URL -- PATH FOLDER COUNT NAME VALUE [NAME VALUE …]
-- Posts the files 0 … COUNT-1 of FOLDER in turn, with the given headers; prints one line of JSON at the end.

local requests = {}
local position = 0

function init(args)
  local path, folder, count = args[1], args[2], tonumber(args[3])
  local headers = {}
  for name, value in pairs(wrk.headers) do
    headers[name] = value
  end
  for index = 4, #args - 1, 2 do
    headers[args[index]] = args[index + 1]
  end
  for index = 0, count - 1 do
    local file = assert(io.open(folder .. "/" .. index, "rb"))
    requests[index] = wrk.format("POST", path, headers, file:read("*a"))
    file:close()
  end
end

function request()
  position = (position + 1) % (#requests + 1)
  return requests[position]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"seconds": %.6f, "requests": %d, "bad_status": %d, "broken": %d, '
      .. '"p50_ms": %.3f, "p90_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}\n',
    summary.duration / 1e6, summary.requests, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3
  ))
end
